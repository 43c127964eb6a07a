"""Crosscoders of this and of other systems: read from folders and the Hub as stock SAELens SAEs, and converted."""

from sae_lens_crosscoder.hub.converting import convert
from sae_lens_crosscoder.hub.formats import FORMATS
from sae_lens_crosscoder.hub.loading import load_crosscoder

__all__ = ["FORMATS", "convert", "load_crosscoder"]
