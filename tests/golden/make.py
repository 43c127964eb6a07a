"""Makes what the tests of this folder read, for ever: everything that a version of this package writes, in miniature.

`PYTHONPATH=.:tests python tests/golden/make.py` writes the folder of the installed version, once, before its release.
Nothing in it depends on random numbers of a library: weights of the models and documents are arithmetic, and the run
trains on a cache of their activations.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from helpers import batchtopk_config, run_config, source, tiny_model
from safetensors.torch import save_file

from sae_lens_crosscoder import CrosscoderRunnerConfig, CrosscoderTrainingRunner, JointModel, Sources, __version__
from sae_lens_crosscoder.activations import CacheRequest, PairedActivationsStore, write_cache
from sae_lens_crosscoder.diffing import PairGeometry
from sae_lens_crosscoder.diffing.diff_report import LatentTable
from sae_lens_crosscoder.diffing.diff_report.decoder_columns import norm_columns, pair_columns
from sae_lens_crosscoder.hub.bundle import Bundle, BundleOptions
from sae_lens_crosscoder.hub.card_section import Place
from sae_lens_crosscoder.hub.model_card import card_with
from sae_lens_crosscoder.hub.published_file import PublishedFile
from sae_lens_crosscoder.training.parent import load_training_sae
from sae_lens_crosscoder.training.saved_run import SavedRun

WIDTH, CONTEXT, BATCH, N_STEPS = 8, 8, 32, 12
HOOK = "blocks.1.hook_resid_pre"
SOURCES = Sources(tuple(source(label, HOOK, WIDTH) for label in ("base", "chat")))


def documents() -> Dataset:
    return Dataset.from_dict({"input_ids": [[(7 * i + 13 * j) % 299 + 1 for j in range(CONTEXT)] for i in range(40)]})


def models() -> JointModel:
    """Two models whose weights are sines, another one for each name."""
    made = [tiny_model(d_model=WIDTH, n_layers=2) for _ in SOURCES]
    with torch.no_grad():
        for n, model in enumerate(made):
            for name, weights in model.named_parameters():
                places = torch.arange(weights.numel(), dtype=torch.float64)
                phase = zlib.crc32(name.encode()) % 1000
                weights.copy_((0.5 * torch.sin(0.7 * places + phase + 0.2 * n)).view_as(weights))
    return JointModel(SOURCES, made)


def inputs() -> torch.Tensor:
    """Joint activations that the crosscoders are compared on."""
    return torch.sin(torch.arange(16 * SOURCES.d_in, dtype=torch.float32) * 0.37).view(16, SOURCES.d_in)


_DATA = {
    "sources": list(SOURCES),
    "dataset_path": "documents",
    "context_size": CONTEXT,
    "n_eval_batches": 0,
    "exclude_special_tokens": False,
}


def config() -> CrosscoderRunnerConfig[Any]:
    """A run that stands in a folder of its own: all its paths are relative."""
    return run_config(
        batchtopk_config(d_sae=12, k=3, d_in=SOURCES.d_in, aux_loss_coefficient=0.5),
        training_tokens=BATCH * N_STEPS,
        train_batch_size_tokens=BATCH,
        n_batches_in_buffer=8,
        use_cached_activations=True,
        cached_activations_path="cache",
        checkpoint_path="checkpoints",
        n_checkpoints=1,
        output_path="crosscoder",
        **_DATA,
    )


def write_golden_cache(folder: Path) -> None:
    cfg = run_config(batchtopk_config(d_in=SOURCES.d_in), **_DATA)
    store = PairedActivationsStore.from_config(models(), cfg, documents())
    write_cache(store, folder, CacheRequest(40 * CONTEXT, dtype="float32"))


def main() -> None:
    target = Path(__file__).parent / __version__
    if target.exists():
        raise SystemExit(f"{target} is there: what a version wrote is never written anew.")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        make(Path(temporary))
        shutil.copytree(temporary, target)


def make(folder: Path) -> None:
    """Train, diff and publish in a folder, which is the current one."""
    write_golden_cache(folder / "cache")
    CrosscoderTrainingRunner(config(), documents(), models()).run()
    (checkpoint,) = folder.glob("checkpoints/*/*")
    checkpoint.rename(folder / "checkpoint")
    shutil.rmtree(folder / "checkpoints")
    run = SavedRun(folder / "crosscoder")
    geometry = PairGeometry.from_sources(run.sae.W_dec, run.sources, dead=run.dead)
    table = LatentTable([*pair_columns(geometry), *norm_columns(run.sae.W_dec, run.sources)], run.sources.labels)
    (folder / "report").mkdir()
    (folder / "report" / "latents.parquet").write_bytes(table.to_parquet())
    (folder / "report" / "latents.csv").write_bytes(table.to_csv())
    bundle = Bundle(folder / "crosscoder", BundleOptions(report_folder=folder / "report"))
    place = Place("owner/golden", HOOK, None)
    for file in bundle.files:
        write_published(folder / "published" / place.id, file)
    (folder / "published" / "README.md").write_text(card_with(None, bundle, place, "mit"))
    x, halfway = inputs(), load_training_sae(folder / "checkpoint", "cpu")
    expected = {
        "inputs": x,
        "codes": run.sae.encode(x),
        "reconstructions": run.sae(x),
        "codes_at_checkpoint": halfway.encode(x),
        "reconstructions_at_checkpoint": halfway.decode(halfway.encode(x)),
    }
    save_file({name: value.detach().contiguous() for name, value in expected.items()}, folder / "expected.safetensors")


def write_published(folder: Path, file: PublishedFile) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    (folder / file.name).write_bytes(content)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
