"""The long pass: every token through both models up to the hook and through the crosscoder once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sae_lens_crosscoder.activations import TokenRole
from sae_lens_crosscoder.diffing import (
    ContextTable,
    LatentScaling,
    LatentScalingResult,
    LatentStatistics,
    LatentStatisticsResult,
    LinearDecoder,
    TokenBatch,
    TopContexts,
    run_pass,
)
from sae_lens_crosscoder.errors import DataError, first_line
from sae_lens_crosscoder.files import write_file
from sae_lens_crosscoder.model_diff.setup import DiffConfig, DiffSubject
from sae_lens_crosscoder.progress import token_bar

_PARTS = 32
"""Times that the state is saved on the way."""


@dataclass(frozen=True)
class Readings:
    """What the pass has found."""

    scaling: LatentScalingResult | None
    """Latent scaling with the fine-tuned model's directions; None for sources of different width."""

    statistics: LatentStatisticsResult
    contexts: ContextTable
    """Sequence ids are positions in the subject's sequences."""


def read_latents(subject: DiffSubject, config: DiffConfig, finetuned: str, state: Path) -> Readings:
    """Read all sequences, or go on where an earlier call was stopped.

    Args:
        subject: What is read.
        config: The effort.
        finetuned: Label whose decoder directions probe the other sources.
        state: File of the sums so far; it stays until the caller removes it.
    """
    sources = subject.joint.sources
    comparable = len({source.d_in for source in sources}) == 1
    scaling = LatentScaling(finetuned)
    groups = {"dataset": list(subject.sequences.dataset_names), "role": TokenRole.names()}
    statistics, contexts = LatentStatistics(groups), TopContexts(config.n_contexts)
    accumulators = {"scaling": scaling, "statistics": statistics, "contexts": contexts}
    n_read, decoder = 0, LinearDecoder.of(subject.sae)
    if state.is_file():
        try:
            saved = load_file(state)
        except SafetensorError as error:
            raise DataError(f"{state} is damaged ({first_line(error)}). Delete it: the pass begins anew.") from error
        n_read = int(saved["n_read"])
        device = subject.sae.W_dec.device
        if comparable:
            scaling.load_state_dict(_part(saved, "scaling"), decoder, sources)
        statistics.load_state_dict(_part(saved, "statistics"), device)
        contexts.load_state_dict(_part(saved, "contexts"), device)
    fed = [scaling, statistics, contexts] if comparable else [statistics, contexts]
    n = len(subject.sequences)
    step = -(-n // _PARTS)
    context = subject.sequences.tokens.shape[1]
    with token_bar("Reading latents", n * context, n_read * context) as bar:
        for start in range(n_read, n, step):
            stop = min(start + step, n)
            batches = token_batches(subject, start, stop, config.n_sequences_at_once)
            run_pass(subject.sae, batches, fed, sources, decoder=decoder)
            tensors = {
                f"{name}.{key}": tensor.cpu().contiguous()
                for name, accumulator in accumulators.items()
                for key, tensor in accumulator.state_dict().items()
            }
            write_file(state, save({**tensors, "n_read": torch.tensor(stop)}))
            bar.update((stop - start) * context)
    return Readings(scaling.compute() if comparable else None, statistics.compute(), contexts.compute())


@torch.no_grad()
def token_batches(subject: DiffSubject, start: int, stop: int, size: int) -> Iterator[TokenBatch]:
    """The counted tokens of some sequences with all sources' activations side by side, and where they stand."""
    sequences = subject.sequences
    for first in range(start, stop, size):
        rows = slice(first, min(first + size, stop))
        tokens, counted = sequences.tokens[rows], subject.counted(rows)
        activations = subject.joint.source_activations(tokens)
        device = subject.joint.cfg.device
        kept = counted.to(device)
        context = tokens.shape[1]
        ids = torch.arange(rows.start, rows.stop)[:, None].expand(-1, context)
        yield TokenBatch(
            x=torch.cat([acts.to(device)[kept] for acts in activations], dim=-1),
            sequence_ids=ids[counted],
            positions=torch.arange(context).expand(len(tokens), -1)[counted],
            groups={
                "dataset": sequences.datasets[rows][:, None].expand(-1, context)[counted],
                "role": sequences.roles[rows][counted],
            },
        )


def _part(saved: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): t for key, t in saved.items() if key.startswith(f"{name}.")}
