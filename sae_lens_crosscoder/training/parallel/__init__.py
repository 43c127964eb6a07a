"""Training on several ranks: which of them holds which latents, and the few places where a step needs the others.

`latent_shard.py` says which latents a rank holds, `division.py` how a step is divided (not at all, by tokens or by
latents), and `kth_largest.py` finds the smallest score that stays without exchanging scores.
"""
