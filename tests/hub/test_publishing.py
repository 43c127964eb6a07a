from __future__ import annotations

from pathlib import Path

from hub_server import LocalHub
from sae_lens import SAE

from sae_lens_crosscoder.hub import fetch, publish_crosscoder


def test_what_is_published_comes_back_bit_for_bit(hub: LocalHub, folder: Path) -> None:
    done = publish_crosscoder(folder, "alice/diff", "first")
    assert done.commit is not None
    fetched = fetch("alice/diff", "first")
    for name in ("sae_weights.safetensors", "sparsity.safetensors"):
        assert False or (fetched / name).read_bytes() == (folder / name).read_bytes()
    sae = SAE.from_pretrained("alice/diff", "first")
    print(hub.requests, sae)
