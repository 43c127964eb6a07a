"""What dashboards of a two-model crosscoder cost beside sae-dashboard on a plain SAE of one of the models.

Both show 128 latents on the same text, with the same contexts, tables and histograms: the plain SAE through
sae-dashboard's own runner and page, the crosscoder (as many latents, its input twice as wide) by `write_dashboards`.
The models are random, of GPT-2 small's width and vocabulary with four of its blocks, read after the second. Seconds: in
every round both, in random order, each in a process of its own; `over_plain` is the median over rounds of one by the
other. `peak_mb` is the most memory that the process ever had (Linux), above what it has with models, SAE and text.

Needs sae-dashboard (the extra `dashboard`).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import median_ratio, parse_arguments, peak_above, report, seconds, status_mb
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_lens_crosscoder import JointModel, Source, Sources
from sae_lens_crosscoder.dashboards import DashboardConfig, DashboardSubject, write_dashboards

N_LATENTS, D_SAE, WIDTH, D_VOCAB, CONTEXT = 128, 16_384, 768, 50_257, 128
HOOK = "blocks.2.hook_resid_pre"
CONFIG = DashboardConfig(n_latents_per_page=N_LATENTS)
# About 60 of 16,384 latents are above it, for unit rows and standard normal activations.
THRESHOLD = 2.7


class Words:
    """A tokenizer of made-up words."""

    bos_token_id, padding_side = 0, "right"

    def __init__(self) -> None:
        self.vocab = {f"word{i}": i for i in range(D_VOCAB)}

    def get_vocab(self) -> dict[str, int]:
        return self.vocab

    def decode(self, ids: list[int]) -> str:
        return f"word{ids[0]}"

    def convert_ids_to_tokens(self, token: int) -> str:
        return f"word{token}"


def make_model(seed: int) -> HookedTransformer:
    cfg = HookedTransformerConfig(
        n_layers=4, d_model=WIDTH, n_heads=12, d_head=64, n_ctx=CONTEXT, d_vocab=D_VOCAB, act_fn="gelu_new", seed=seed
    )
    model = HookedTransformer(cfg)
    model.tokenizer = Words()
    with torch.no_grad():
        # Logits as large as a trained model's: for those of a new one sae-dashboard makes 300,000 ticks a latent.
        model.unembed.W_U *= 10
    return model


@torch.no_grad()
def make_sae(d_in: int, typical: torch.Tensor) -> JumpReLUSAE:
    """A sparse SAE whose latents fire on some of these activations, (n_tokens, d_in)."""
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=D_SAE, apply_b_dec_to_input=False))
    directions = torch.randn(D_SAE, d_in, generator=torch.Generator().manual_seed(0))
    directions /= directions.norm(dim=1, keepdim=True)
    scale = typical.std()
    sae.W_dec.copy_(directions)
    sae.W_enc.copy_(directions.T / scale)
    sae.b_enc.copy_(-(typical.mean(dim=0) / scale) @ directions.T)
    sae.threshold.fill_(THRESHOLD)
    return sae


def make_text(n_sequences: int) -> torch.Tensor:
    tokens = torch.randint(1, D_VOCAB, (n_sequences, CONTEXT), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 0
    return tokens


def crosscoder_run(n_sequences: int, out: Path) -> Callable[[], None]:
    sources = Sources(tuple(Source(label, label, HOOK, WIDTH) for label in ("base", "chat")))
    joint = JointModel(sources, [make_model(0), make_model(1)])
    tokens = make_text(n_sequences)
    subject = DashboardSubject(joint, make_sae(2 * WIDTH, joint(tokens[:8]).flatten(0, 1)), tokens, (0,))
    return lambda: void(write_dashboards(subject, range(N_LATENTS), out, CONFIG))


def plain_run(n_sequences: int, out: Path) -> Callable[[], None]:
    from sae_dashboard import components_config as parts
    from sae_dashboard.data_writing_fns import save_feature_centric_vis
    from sae_dashboard.layout import SaeVisLayoutConfig
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner

    model, tokens = make_model(0), make_text(n_sequences)
    with torch.no_grad():
        sae = make_sae(WIDTH, model(tokens[:8], stop_at_layer=2).flatten(0, 1))
    sequences = parts.SequencesConfig(
        buffer=(CONFIG.tokens_before, CONFIG.tokens_after),
        n_quantiles=CONFIG.n_intervals,
        top_acts_group_size=CONFIG.n_top_contexts,
        quantile_group_size=CONFIG.n_contexts_per_interval,
        stack_mode="stack-quantiles",
    )
    components = (parts.ActsHistogramConfig(), parts.LogitsTableConfig(), parts.LogitsHistogramConfig(), sequences)
    layout = SaeVisLayoutConfig([parts.Column(parts.FeatureTablesConfig(), *components)])
    cfg = SaeVisConfig(
        hook_point=HOOK,
        features=list(range(N_LATENTS)),
        minibatch_size_features=N_LATENTS,
        minibatch_size_tokens=CONFIG.n_sequences_at_once,
        ignore_tokens={0},
        ignore_positions=[0],
        feature_centric_layout=layout,
    )

    def run() -> None:
        out.mkdir(parents=True, exist_ok=True)
        data = SaeVisRunner(cfg).run(encoder=sae, model=model, tokens=tokens)  # type: ignore[arg-type]
        save_feature_centric_vis(data, out / "plain.html")

    return run


RUNS: dict[str, Callable[[int, Path], Callable[[], None]]] = {
    "sae-dashboard, one model": plain_run,
    "write_dashboards, two models": crosscoder_run,
}


def void(_: Any) -> None:
    """Drop a result."""


def measure(name: str, n_sequences: int) -> None:
    """Print the seconds and the peak of one run as JSON. Run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        RUNS["sae-dashboard, one model"](2, Path(folder) / "warm")()
        run = RUNS[name](n_sequences, Path(folder) / "measured")
        gc.collect()
        taken: list[float] = []
        peak = peak_above(status_mb("VmRSS"), lambda: taken.append(seconds(run)))
    print(json.dumps({"seconds": taken[0], "peak_mb": peak}))


def in_own_process(name: str, n_sequences: int) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--measure", name, "--n-sequences", str(n_sequences)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)}  # freed memory goes back to the system at once
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    if "--measure" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--measure")
        parser.add_argument("--n-sequences", type=int)
        inner = parser.parse_args()
        measure(inner.measure, inner.n_sequences)
        return
    options = parse_arguments(__doc__ or "")
    n_sequences, n_rounds = (16, 2) if options.quick else (128, 5)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
    for _ in range(n_rounds):
        for name in random.sample(list(RUNS), len(RUNS)):
            found[name].append(in_own_process(name, n_sequences))
    plain = found["sae-dashboard, one model"]
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "latents": N_LATENTS,
            "tokens": n_sequences * CONTEXT,
            "seconds": round(statistics.median(one["seconds"] for one in runs), 2),
            "over_plain": median_ratio([r["seconds"] for r in runs], [r["seconds"] for r in plain]),
            "peak_mb": round(statistics.median(one["peak_mb"] for one in runs)),
            "peak_over_plain": median_ratio([r["peak_mb"] for r in runs], [r["peak_mb"] for r in plain]),
        }
        for name, runs in found.items()
    ]
    report(rows, options)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
