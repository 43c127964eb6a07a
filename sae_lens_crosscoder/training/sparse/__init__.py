"""The exact sparse training step: everything but the encoder's forward product is done on active pairs alone.

A pair is a token and a latent that is active on it. `pairs.py` holds them, `products.py` the three products on them
(where kernels of a device go), `autograd.py` encoder and decoder made of these, `encoder.py` and `selection.py` find
the pairs without holding the (batch, d_sae) matrix of codes, and `forward.py` makes the losses of a step and says when
a step has to hold all codes.

Gated and JumpReLU crosscoders always take the dense step: a gate's penalty and JumpReLU's penalty on pre-activations
reach pairs that are not active, and thresholds learn from all pairs in a window about them.
"""
