"""Dashboards of single latents."""
