"""Crosscoders of other systems on the Hub: loaded by name, converted, published again, and read by stock SAELens."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import reference_checkpoint
from hub_server import LocalHub
from sae_lens import SAE
from torch import Tensor

from sae_lens_crosscoder.errors import ConfigError, NotFoundError, SourceError
from sae_lens_crosscoder.hub import convert, load_crosscoder, publish_crosscoder, registry

KISSANE = "ckkissane/crosscoder-gemma-2-2b-model-diff"
HOOK = "blocks.14.hook_resid_pre"
WIDTH = 2304


def kissane_files(d_sae: int = 8) -> tuple[dict[str, bytes], dict[str, Tensor]]:
    """Files as Kissane et al. published them, of the width of Gemma 2 2B, and their tensors."""
    weights = {
        "W_enc": torch.randn(2, WIDTH, d_sae),
        "W_dec": torch.randn(d_sae, 2, WIDTH),
        "b_enc": torch.randn(d_sae),
        "b_dec": torch.randn(2, WIDTH),
    }
    archive = io.BytesIO()
    torch.save(weights, archive)
    config = {"d_in": WIDTH, "dict_size": d_sae, "hook_point": HOOK, "model_name": "gemma-2-2b"}
    return {f"{HOOK}/cc_weights.pt": archive.getvalue(), f"{HOOK}/cfg.json": json.dumps(config).encode()}, weights


@pytest.mark.parametrize("name", ["kissane-gemma-2-2b-l14", KISSANE])
def test_kissanes_crosscoder_takes_raw_activations_by_the_published_scales(hub: LocalHub, name: str) -> None:
    files, weights = kissane_files()
    hub.add(KISSANE, files)
    sae = load_crosscoder(name)
    x = torch.randn(20, 2, WIDTH)
    scaled = x * torch.tensor([0.2758961493232058, 0.24422852496546169])[:, None]
    codes = (torch.einsum("nmd,mdj->nj", scaled, weights["W_enc"]) + weights["b_enc"]).relu()
    torch.testing.assert_close(sae.encode(x.flatten(1)), codes, rtol=1e-4, atol=1e-3)
    sources = sae.cfg.metadata.sources
    assert [source["model_name"] for source in sources] == ["google/gemma-2-2b", "google/gemma-2-2b-it"]
    assert [source["activation_scale"] for source in sources] == pytest.approx([0.2758961493, 0.2442285250])
    origin = {"format": "kissane", "repo_id": KISSANE, "revision": None}
    assert {key: sae.cfg.metadata.converted_from[key] for key in origin} == origin


def test_without_what_is_known_the_scales_have_to_be_given(hub: LocalHub) -> None:
    files, _ = kissane_files()
    hub.add("alice/copy", files)
    with pytest.raises(ConfigError, match="Pass scales"):
        load_crosscoder("alice/copy")
    sae = load_crosscoder("alice/copy", scales=[0.5, 0.25])
    assert [source["activation_scale"] for source in sae.cfg.metadata.sources] == [0.5, 0.25]


def test_what_is_said_goes_before_what_is_known(hub: LocalHub) -> None:
    files, _ = kissane_files()
    hub.add(KISSANE, files)
    sae = load_crosscoder(KISSANE, HOOK, scales=[1.0, 2.0], sources=[{"label": "a"}, {"label": "b"}])
    assert [(s["label"], s["activation_scale"]) for s in sae.cfg.metadata.sources] == [("a", 1.0), ("b", 2.0)]
    with pytest.raises(SourceError, match="2 sources"):
        load_crosscoder(KISSANE, HOOK, sources=[{"label": "a"}])


def test_what_is_known_of_one_crosscoder_is_not_taken_for_another_of_its_repository(hub: LocalHub) -> None:
    files, _ = kissane_files()
    hub.add(KISSANE, {path.replace("14", "20"): content for path, content in files.items()} | files)
    other = HOOK.replace("14", "20")
    with pytest.raises(ConfigError, match=r"would be wrong for 'blocks\.20"):
        load_crosscoder("kissane-gemma-2-2b-l14", other)
    with pytest.raises(ConfigError, match="Pass scales"):
        load_crosscoder(KISSANE, other)
    assert load_crosscoder("kissane-gemma-2-2b-l14", HOOK).cfg.metadata.converted_from["id"] == HOOK


def test_a_name_that_is_not_known_is_answered_with_the_nearest(hub: LocalHub) -> None:
    with pytest.raises(NotFoundError, match=r"known as 'kissane-gemma'.*no folder or file.*Did you mean"):
        load_crosscoder("kissane-gemma")
    assert hub.requests == []


def test_the_systems_own_numbers_survive_the_hub_the_conversion_and_stock_saelens(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs: dict[str, Any] = torch.load(reference_checkpoint("ckkissane") / "io.pt", weights_only=True)
    folder = reference_checkpoint("ckkissane/hf_repo") / HOOK
    hub.add(KISSANE, {f"{HOOK}/{path.name}": path.read_bytes() for path in folder.iterdir()})
    known = registry.known_crosscoder("kissane-gemma-2-2b-l14")
    sources = tuple({**source, "d_in": theirs["x_raw"].shape[2]} for source in known.sources or ())
    small = replace(known, sources=sources, scales=tuple(theirs["scale"].tolist()))
    monkeypatch.setattr(registry, "_KNOWN", (small,))

    converted = convert("kissane-gemma-2-2b-l14", tmp_path / "converted")
    done = publish_crosscoder(converted, "alice/again", "kissane")
    sae = SAE.from_pretrained("alice/again", "kissane")
    x = theirs["x_raw"].flatten(1)
    codes = sae.encode(x)
    assert (codes > 0).any()
    torch.testing.assert_close(codes, theirs["acts"], rtol=1e-5, atol=1e-5)
    reconstructions = (theirs["recon"] / theirs["scale"][:, None]).flatten(1)
    torch.testing.assert_close(sae.decode(codes), reconstructions, rtol=1e-5, atol=1e-5)
    assert torch.equal(load_crosscoder("alice/again").encode(x), codes)
    assert "| base | google/gemma-2-2b | blocks.14.hook_resid_pre | 16 |" in done.card
