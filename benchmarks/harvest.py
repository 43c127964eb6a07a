"""How close the paired store comes to the floor: the bare forwards of both models, stopped at the layer that is read.

Time: every contender makes the same number of forward passes in every round, in random order; the table has the median
over rounds of its time by that of the floor in the same round. SAELens's store reads *one* model, so its floor is that
model's bare forward. Memory (Linux): each contender runs in a process of its own. `floor_peak_mb` and `peak_mb` are the
peaks of the bare forwards and of the contender above the models and the data, `peak_over_buffer` is their difference by
the size of the buffer.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import median_ratio, parse_arguments, peak_above, report, seconds, status_mb
from datasets import Dataset
from sae_lens import ActivationsStore
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_lens_crosscoder import DatasetConfig, JointModel, PairedActivationsStore, Source, Sources, StoreConfig
from sae_lens_crosscoder.activations import SequenceFormat

CONTEXT, PROMPTS, D_VOCAB, BATCH = 128, 32, 8000, 2048
SHAPES = {"4 layers, width 256": (4, 256), "6 layers, width 512": (6, 512)}
CONTENDERS = {
    "paired store, float32": "float32",
    "paired store, bfloat16 buffer": "bfloat16",
    "SAELens store, resid_pre": "resid_pre",
    "SAELens store, resid_post": "resid_post",
}


def make_model(n_layers: int, width: int, seed: int) -> HookedTransformer:
    cfg = HookedTransformerConfig(
        n_layers=n_layers,
        d_model=width,
        d_head=64,
        d_mlp=4 * width,
        n_ctx=CONTEXT,
        d_vocab=D_VOCAB,
        act_fn="gelu",
        seed=seed,
    )
    return HookedTransformer(cfg)


def make_data(n_rows: int = 4096) -> Dataset:
    rows = torch.randint(0, D_VOCAB, (n_rows, CONTEXT), generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict({"input_ids": rows.tolist()})


def paired_store(models: list[HookedTransformer], buffer_dtype: str, buffer_tokens: int) -> PairedActivationsStore:
    layer, width = models[0].cfg.n_layers // 2, models[0].cfg.d_model
    sources = Sources(tuple(Source(f"m{i}", "random", f"blocks.{layer}.hook_resid_pre", width) for i in range(2)))
    cfg = StoreConfig(
        SequenceFormat(CONTEXT, prepend_bos=False),
        batch_size_tokens=BATCH,
        batch_size_prompts=PROMPTS,
        buffer_tokens=buffer_tokens,
        buffer_dtype=buffer_dtype,
    )
    return PairedActivationsStore(JointModel(sources, models), [make_data()], [DatasetConfig(label="random")], cfg)


def saelens_store(model: HookedTransformer, hook: str, buffer_tokens: int) -> ActivationsStore:
    layer = model.cfg.n_layers // 2
    name = f"blocks.{layer}.hook_resid_pre" if hook == "resid_pre" else f"blocks.{layer - 1}.hook_resid_post"
    return ActivationsStore(
        model=model,
        dataset=make_data(),
        streaming=False,
        hook_name=name,
        hook_head_index=None,
        context_size=CONTEXT,
        d_in=model.cfg.d_model,
        n_batches_in_buffer=buffer_tokens // CONTEXT,
        total_training_tokens=1,
        store_batch_size_prompts=PROMPTS,
        train_batch_size_tokens=BATCH,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
    )


def bare_forwards(models: list[HookedTransformer], n_passes: int) -> Callable[[], None]:
    tokens = torch.randint(0, D_VOCAB, (PROMPTS, CONTEXT))
    stop = models[0].cfg.n_layers // 2

    @torch.no_grad()
    def run() -> None:
        for _ in range(n_passes):
            for model in models:
                model(tokens, stop_at_layer=stop, return_type=None)

    return run


def store_run(store: Iterator[torch.Tensor], n_passes: int) -> Callable[[], None]:
    """As many batches as the store fills from `n_passes` forward passes."""
    n_batches = n_passes * PROMPTS * CONTEXT // BATCH

    def run() -> None:
        for _ in range(n_batches):
            next(store)

    return run


def time_rows(shape: str, n_rounds: int) -> list[dict[str, Any]]:
    models = [make_model(*SHAPES[shape], seed) for seed in range(2)]
    # A refill takes half the buffer, 16,384 tokens: four forward passes. Rounds cover whole refills.
    buffer_tokens, n_passes = 32_768, 4
    runs = {"floor of two": bare_forwards(models, n_passes), "floor of one": bare_forwards(models[:1], n_passes)}
    for name, kind in CONTENDERS.items():
        paired = name.startswith("paired")
        store = paired_store(models, kind, buffer_tokens) if paired else saelens_store(models[0], kind, buffer_tokens)
        runs[name] = store_run(store, n_passes)
        runs[name]()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(n_rounds):
        for name in random.sample(list(runs), len(runs)):
            times[name].append(seconds(runs[name]))
    rows: list[dict[str, Any]] = []
    for name in CONTENDERS:
        floor = "floor of two" if name.startswith("paired") else "floor of one"
        tokens_per_second = n_passes * PROMPTS * CONTEXT / sorted(times[name])[n_rounds // 2]
        ratio = median_ratio(times[name], times[floor])
        rows.append({"name": name, "shape": shape, "tokens_per_second": round(tokens_per_second), "over_floor": ratio})
    return rows


def measure_memory(name: str, shape: str) -> None:
    """Print this process's peaks as JSON. Run in a process of its own."""
    models = [make_model(*SHAPES[shape], seed) for seed in range(2)]
    paired, kind, buffer_tokens = name.startswith("paired"), CONTENDERS[name], 131_072
    store = paired_store(models, kind, buffer_tokens) if paired else saelens_store(models[0], kind, buffer_tokens)
    floor = bare_forwards(models if paired else models[:1], 4)
    floor()
    gc.collect()
    start = status_mb("VmRSS")
    floor_mb = peak_above(start, floor)
    peak_mb = peak_above(start, store_run(store, 3 * buffer_tokens // (PROMPTS * CONTEXT)))
    d_in = models[0].cfg.d_model * (2 if paired else 1)
    buffer_mb = buffer_tokens * d_in * (2 if kind == "bfloat16" else 4) / 2**20
    print(json.dumps({"buffer_mb": buffer_mb, "floor_peak_mb": floor_mb, "peak_mb": peak_mb}))


def memory_in_own_process(name: str, shape: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--memory-of", name, "--shape", shape]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    values: dict[str, float] = json.loads(output.splitlines()[-1])
    above_floor = values["peak_mb"] - values["floor_peak_mb"]
    return {**values, "peak_over_buffer": above_floor / values["buffer_mb"]}


def main() -> None:
    if "--memory-of" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--memory-of")
        parser.add_argument("--shape")
        inner = parser.parse_args()
        measure_memory(inner.memory_of, inner.shape)
        return
    options = parse_arguments(__doc__ or "")
    shapes = list(SHAPES)[:1] if options.quick else list(SHAPES)
    rows: list[dict[str, Any]] = []
    for shape in shapes:
        for row in time_rows(shape, n_rounds=5 if options.quick else 11):
            rows.append({**row, **memory_in_own_process(row["name"], shape)})
    report(rows, options)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
