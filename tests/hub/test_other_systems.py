"""Checkpoints that other systems wrote: their codes and reconstructions on raw inputs, before and after `convert`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import reference_checkpoint
from sae_lens import SAE
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_lens_crosscoder import Sources
from sae_lens_crosscoder.diffing import decoder_norms
from sae_lens_crosscoder.errors import CheckpointError
from sae_lens_crosscoder.hub import convert, load_crosscoder

Numbers = dict[str, Tensor]

SCRIPT = """
import sys
sys.modules["sae_lens_crosscoder"] = None  # importing it raises ImportError
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE

torch.set_num_threads(1)
work = Path(sys.argv[1])
for folder in sorted(work.glob("*/x.safetensors")):
    x = load_file(folder)["x"]
    sae = SAE.load_from_disk(folder.parent)
    codes = sae.encode(x)
    save_file({"codes": codes, "reconstructions": sae.decode(codes)}, folder.parent / "stock.safetensors")
"""


@dataclass(frozen=True)
class Reference:
    """Where a system's checkpoint lies, and its own numbers: raw inputs, codes and reconstructions in raw units."""

    folder: str
    numbers: str
    """Folder with the inputs and outputs (`io.pt`)."""

    raw: Callable[[Numbers], tuple[Tensor, Tensor, Tensor]]
    options: Callable[[Numbers], dict[str, Any]] = field(default=lambda io: {})

    def read(self) -> tuple[SAE[Any], Tensor, Tensor, Tensor]:
        """The checkpoint as an SAE, with raw inputs, codes and raw reconstructions of its system."""
        io = torch.load(reference_checkpoint(self.numbers) / "io.pt", weights_only=True)
        x, codes, reconstructions = self.raw(io)
        options = self.options(io)
        sae = load_crosscoder(reference_checkpoint(self.folder), **options)
        return sae, x.flatten(1), codes, reconstructions.flatten(1)


def kissane(io: Numbers) -> tuple[Tensor, Tensor, Tensor]:
    return io["x_raw"], io["acts"], io["recon"] / io["scale"][:, None]


def sof(suffix: str = "") -> Callable[[Numbers], tuple[Tensor, Tensor, Tensor]]:
    return lambda io: (io["x_raw"], io[f"acts{suffix}"], io[f"recon{suffix}"])


def stage(name: str) -> Callable[[Numbers], tuple[Tensor, Tensor, Tensor]]:
    # Its reconstructions are in scaled units.
    return lambda io: (io["x_raw"], io[f"acts_{name}"], io[f"recon_{name}"] / io["scale_MP"][..., None])


def scaled(io: Numbers) -> dict[str, Any]:
    return {"scales": io["scale"].tolist()}


REFERENCES = {
    "kissane": Reference("ckkissane/hf_repo", "ckkissane", kissane, scaled),
    "kissane_local": Reference("ckkissane/local", "ckkissane", kissane, scaled),
    "nanda": Reference("neel", "neel", lambda io: (io["x_raw"], io["folded_acts"], io["folded_recon"])),
    "nanda_local": Reference(
        "neel/version_0",
        "neel",
        lambda io: (io["x_raw"], io["acts"], io["recon"] * io["norm_factor_div"][:, None]),
        lambda io: {"scales": (1 / io["norm_factor_div"]).tolist()},
    ),
    "sof_legacy": Reference("sof_dl/legacy_compiled", "sof_dl/legacy_compiled", sof()),
    **{
        f"sof_{name}_{place}": Reference(f"sof_dl/{name}/{place}", f"sof_dl/{name}", sof(suffix))
        for name, suffix in {
            "relu_crosscoder": "",
            "relu_sae_norm": "",
            "batchtopk_crosscoder": "_threshold",
            "batchtopk_crosscoder_normalizer": "_threshold",
        }.items()
        for place in ("hub", "local")
    },
    **{
        f"sof_diff_sae_{place}": Reference(
            f"sof_dl/diff_sae_batchtopk/{place}",
            "sof_dl/diff_sae_batchtopk",
            lambda io: (io["x_diff"], io["acts_threshold"], io["recon"]),
        )
        for place in ("hub", "local")
    },
    **{
        f"crosscode_{name}": Reference(
            f"crosscode/{name}/folded",
            f"crosscode/{name}",
            lambda io: (io["x_raw"], io["folded_acts"], io["folded_recon"]),
        )
        for name in ("relu_l1", "topk", "jumprelu_jan")
    },
    **{
        f"crosscode_{name}_unfolded": Reference(
            f"crosscode/{name}/unfolded",
            f"crosscode/{name}",
            lambda io: (io["x_raw"], io["acts"], io["recon"] / io["scale_MP"][..., None]),
            lambda io: {"scales": io["scale_MP"].flatten().tolist()},
        )
        for name in ("relu_l1", "topk", "jumprelu_jan")
    },
    **{
        f"stagewise_{name}": Reference(f"stagewise_tinystories/{name}", "stagewise_tinystories", stage(name))
        for name in ("S", "D", "M", "DF", "MF")
    },
    "antebe": Reference("antebe/cc", "antebe/cc", lambda io: (io["x"], io["features"], io["recon"])),
}

pytestmark = pytest.mark.filterwarnings("default:.*does not say whether activation scales:UserWarning")


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every reference converted, and what a process without this package makes of it."""
    work = tmp_path_factory.mktemp("converted")
    for name, reference in REFERENCES.items():
        io = torch.load(reference_checkpoint(reference.numbers) / "io.pt", weights_only=True)
        out = convert(reference_checkpoint(reference.folder), work / name, **reference.options(io))
        save_file({"x": reference.raw(io)[0].flatten(1).contiguous()}, out / "x.safetensors")
    (work / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", str(work)]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return work


@pytest.mark.parametrize("name", REFERENCES)
def test_codes_and_reconstructions_on_raw_inputs_are_those_of_the_system(name: str):
    sae, x, codes, reconstructions = REFERENCES[name].read()
    assert (codes > 0).any()
    close(sae.encode(x), codes)
    close(sae.decode(sae.encode(x)), reconstructions)


@pytest.mark.parametrize("name", REFERENCES)
def test_stock_saelens_gives_them_too_after_convert_in_a_process_without_this_package(name: str, stock: Path):
    sae, x, codes, reconstructions = REFERENCES[name].read()
    theirs = load_file(stock / name / "stock.safetensors")
    close(theirs["codes"], codes)
    close(theirs["reconstructions"], reconstructions)
    assert torch.equal(theirs["codes"], sae.encode(x))


def test_decoupled_codes_are_refused_with_the_reason():
    for place in ("hub", "local"):
        with pytest.raises(CheckpointError, match="one code a latent"):
            load_crosscoder(reference_checkpoint("sof_dl/batchtopk_decoupled") / place)


def test_the_scales_that_were_folded_stand_with_the_sources():
    sae, *_ = REFERENCES["sof_batchtopk_crosscoder_normalizer_hub"].read()
    folder = reference_checkpoint("sof_dl/batchtopk_crosscoder_normalizer")
    scales = load_file(folder / "hub" / "model.safetensors")["activation_global_scale"]
    assert [source["activation_scale"] for source in sae.cfg.metadata.sources] == pytest.approx(scales.tolist())
    sae, *_ = REFERENCES["crosscode_topk"].read()
    io = torch.load(reference_checkpoint("crosscode/topk") / "io.pt", weights_only=True)
    assert [s["activation_scale"] for s in sae.cfg.metadata.sources] == pytest.approx(io["scale_MP"].flatten().tolist())


def test_relative_decoder_norms_in_the_units_of_training_are_those_of_the_systems():
    # Measured in raw units they would be off by the ratio of the scales.
    entries = {"kissane": "rel_norm", "crosscode_relu_l1": "rel_norm_layer0", "crosscode_topk": "rel_norm_layer0"}
    for name, entry in entries.items():
        sae, *_ = REFERENCES[name].read()
        io = torch.load(reference_checkpoint(REFERENCES[name].numbers) / "io.pt", weights_only=True)
        sources = Sources.from_metadata(sae.cfg.metadata)
        norms = decoder_norms(sae.W_dec.detach(), sources.widths, sources.activation_scales)
        second = len(sources) // 2  # of the first hook point
        close(norms[:, second] / (norms[:, 0] + norms[:, second]), io[entry])


@pytest.mark.parametrize("name", ["relu_crosscoder", "batchtopk_crosscoder"])
def test_the_papers_checkpoints_for_latent_scaling_load_too(name: str):
    folder = reference_checkpoint("latent_scaling") / name
    io = torch.load(folder / "io.pt", weights_only=True)
    sae = load_crosscoder(folder / "checkpoint")
    active = (sae.encode(io["x_raw"].flatten(1)) > 0).sum(dim=0)
    assert torch.equal(active, io["count_active"].to(active.dtype))
