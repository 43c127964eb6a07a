"""Crosscoders on the Hugging Face Hub and in folders: published in SAELens's layout, found, and read in any format."""

from sae_lens_crosscoder.hub.bundle import BundleOptions
from sae_lens_crosscoder.hub.card_section import Place
from sae_lens_crosscoder.hub.converting import convert, save_crosscoder
from sae_lens_crosscoder.hub.formats import FORMATS
from sae_lens_crosscoder.hub.loading import load_crosscoder
from sae_lens_crosscoder.hub.publishing import Publication, PublishOptions, publish_crosscoder
from sae_lens_crosscoder.hub.repository import fetch

__all__ = [
    "FORMATS",
    "BundleOptions",
    "Place",
    "Publication",
    "PublishOptions",
    "convert",
    "fetch",
    "load_crosscoder",
    "publish_crosscoder",
    "save_crosscoder",
]
