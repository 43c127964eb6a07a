"""What reading latents costs beside encoding: one pass with latent scaling, statistics and top contexts.

Time: the pass, from scratch, and the bare `encode` of the same SAE over the same batches, in random order in every
round; `over_encode` is the median over rounds of one by the other. The first batches are the dearest, because every
place is still a top context then, so a longer stream comes closer to the encoder. Memory (Linux): the pass runs in a
process of its own over N and over 4 N tokens; `peak_mb` is its peak above the SAE and the batches.

`--long` takes a million tokens, once, each contender in a process of its own: time and memory of the same run. Time is
then that of the processors (a thread each), since a machine may do other things meanwhile.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import median_ratio, parse_arguments, peak_above, report, seconds, status_mb
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

from sae_lens_crosscoder import Source, Sources
from sae_lens_crosscoder.diffing import Accumulator, LatentScaling, LatentStatistics, TokenBatch, TopContexts, run_pass

D_SAE, WIDTH, BATCH, CONTEXT = 16_384, 256, 4096, 1024
GROUPS = {"dataset": ["web", "chat"], "role": ["text", "template", "user", "first", "assistant"]}
SOURCES = Sources(tuple(Source(label, "random", "blocks.0.hook_resid_pre", WIDTH) for label in ("base", "chat")))
# About 100 of 16,384 latents are above it, for unit rows and standard normal activations.
THRESHOLD = 2.5
CONTENDERS: dict[str, Callable[[], list[Accumulator]]] = {
    "scaling": lambda: [LatentScaling("chat")],
    "statistics": lambda: [LatentStatistics(GROUPS)],
    "top contexts": lambda: [TopContexts(20)],
    "all three": lambda: [LatentScaling("chat"), LatentStatistics(GROUPS), TopContexts(20)],
}


def make_sae() -> JumpReLUSAE:
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=2 * WIDTH, d_sae=D_SAE))
    directions = torch.randn(D_SAE, 2 * WIDTH, generator=torch.Generator().manual_seed(0))
    directions /= directions.norm(dim=1, keepdim=True)
    with torch.no_grad():
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
        sae.threshold.fill_(THRESHOLD)
    return sae


def make_batches(n_batches: int) -> Iterator[TokenBatch]:
    """Batches made one at a time: their columns roll, so that no batch is like another."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, 2 * WIDTH, generator=generator)
    for i in range(n_batches):
        place = torch.arange(i * BATCH, (i + 1) * BATCH)
        groups = {kind: torch.randint(len(names), (BATCH,), generator=generator) for kind, names in GROUPS.items()}
        yield TokenBatch(x.roll(i, dims=1), place // CONTEXT, place % CONTEXT, groups)


def bare_encode(sae: JumpReLUSAE, n_batches: int) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        for batch in make_batches(n_batches):
            sae.encode(batch.x)

    return run


def full_pass(sae: JumpReLUSAE, name: str, n_batches: int) -> Callable[[], None]:
    return lambda: run_pass(sae, make_batches(n_batches), CONTENDERS[name](), SOURCES)


def time_rows(n_rounds: int, n_batches: int) -> list[dict[str, Any]]:
    sae = make_sae()
    runs = {"encode": bare_encode(sae, n_batches)}
    runs |= {name: full_pass(sae, name, n_batches) for name in CONTENDERS}
    bare_encode(sae, 1)()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(n_rounds):
        for name in random.sample(list(runs), len(runs)):
            times[name].append(seconds(runs[name]))
    return [
        {
            "name": name,
            "tokens": n_batches * BATCH,
            "tokens_per_second": round(n_batches * BATCH / sorted(times[name])[n_rounds // 2]),
            "over_encode": median_ratio(times[name], times["encode"]),
        }
        for name in runs
    ]


def measure(name: str, n_batches: int) -> None:
    """Print this process's peak and the processor time of its run as JSON. Run in a process of its own."""
    sae = make_sae()
    run = bare_encode(sae, n_batches) if name == "encode" else full_pass(sae, name, n_batches)
    bare_encode(sae, 1)()
    gc.collect()
    start = time.process_time()
    peak = peak_above(status_mb("VmRSS"), run)
    print(json.dumps({"peak_mb": peak, "seconds": time.process_time() - start}))


def measured_in_own_process(name: str, n_batches: int) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--measure", name, "--n-batches", str(n_batches)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def rounds(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Times of short streams over several rounds, and the memory of two lengths."""
    n_batches = 2 if options.quick else 6
    rows = time_rows(n_rounds=3 if options.quick else 5, n_batches=n_batches)
    for row in rows:
        for factor in (1, 4):
            row[f"peak_mb_{factor}n"] = round(measured_in_own_process(row["name"], factor * n_batches)["peak_mb"])
    return rows


def long_rows(n_tokens: int = 1_000_000) -> list[dict[str, Any]]:
    """Time and memory of one long stream."""
    n_batches = -(-n_tokens // BATCH)
    found = {name: measured_in_own_process(name, n_batches) for name in ("encode", "all three")}
    return [
        {
            "name": name,
            "tokens": n_batches * BATCH,
            "tokens_per_second": round(n_batches * BATCH / one["seconds"]),
            "over_encode": one["seconds"] / found["encode"]["seconds"],
            "peak_mb": round(one["peak_mb"]),
        }
        for name, one in found.items()
    ]


def main() -> None:
    if "--measure" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--measure")
        parser.add_argument("--n-batches", type=int)
        inner = parser.parse_args()
        measure(inner.measure, inner.n_batches)
        return
    options = parse_arguments(__doc__ or "", long="one pass over a million tokens")
    report(long_rows() if options.long else rounds(options), options)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
