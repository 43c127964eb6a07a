"""The exact sparse training step: everything but the encoder's forward product is done on active pairs alone.

A pair is a token and a latent that is active on it. `pairs.py` holds them, `products.py` the three products on them
(`bag_products.py` in torch, `triton_products.py` as kernels), `autograd.py` encoder and decoder made of these,
`encoder.py` and `selection.py` find the pairs without holding the (batch, d_sae) matrix of codes, and `forward.py`
makes the losses of a step and says when a step has to hold all codes.

On CUDA `chunk_encoder.py` and `chunk_selection.py` find the same pairs in shapes that do not depend on the data, so
that the host reads nothing back from the device in a step. Some crosscoders do read: L1 and JumpReLU ones, whose number
of active pairs is not known beforehand, and those with designated shared latents. Speed on CUDA is not measured yet.

Gated crosscoders always take the dense step: gates and magnitudes are two scores of one product, and open gates are
decoded a second time.
"""
