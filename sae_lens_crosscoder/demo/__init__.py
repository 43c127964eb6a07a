"""The demo: a tiny pair of models whose difference is known by construction, and the crosscoder that finds it."""

from sae_lens_crosscoder.demo.pair import ModelPair, PairConfig, load_or_make_pair
from sae_lens_crosscoder.demo.run import DemoConfig, run_demo

__all__ = ["DemoConfig", "ModelPair", "PairConfig", "load_or_make_pair", "run_demo"]
