"""Crosscoders on the Hugging Face Hub: published in SAELens's layout, found and fetched."""

from sae_lens_crosscoder.hub.bundle import BundleOptions
from sae_lens_crosscoder.hub.card_section import Place
from sae_lens_crosscoder.hub.publishing import Publication, PublishOptions, publish_crosscoder
from sae_lens_crosscoder.hub.repository import fetch

__all__ = ["BundleOptions", "Place", "Publication", "PublishOptions", "fetch", "publish_crosscoder"]
