"""The demo: a tiny pair of models whose difference is known by construction, and the crosscoder that finds it."""

from sae_lens_crosscoder.demo.pair import ModelPair, PairConfig, load_or_make_pair
from sae_lens_crosscoder.demo.run import DemoConfig, run_demo
from sae_lens_crosscoder.demo.stages import StagesConfig, run_stages

__all__ = ["DemoConfig", "ModelPair", "PairConfig", "StagesConfig", "load_or_make_pair", "run_demo", "run_stages"]
