"""What a model diff shows of latents: where they fire, what they write, and the texts on which the models differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.causal import ModelComparison
from sae_lens_crosscoder.diffing import ContextTable
from sae_lens_crosscoder.diffing.diff_report import Contexts, Evidence, KLDocument, LogitLens
from sae_lens_crosscoder.hooked_models import unembedding
from sae_lens_crosscoder.model_diff.kl import Divergence, DivergentSequence
from sae_lens_crosscoder.model_diff.setup import DiffSubject

_TOKENS_BEFORE, _TOKENS_AFTER = 20, 8
_N_LENS_TOKENS = 8
_PADDING = -1


def evidence(
    subject: DiffSubject,
    comparison: ModelComparison,
    latents: Sequence[int],
    table: ContextTable,
    divergence: Divergence,
) -> Evidence:
    """Contexts and logit lenses of the latents, and the sequences with the largest KL."""
    contexts = top_contexts(subject, latents, table)
    labels = (comparison.base, comparison.finetuned)
    lenses = {label: lens for label in labels if (lens := logit_lens(comparison, label, latents)) is not None}
    documents = [_document(subject, sequence, labels) for sequence in divergence.sequences]
    ids = [*(c.token_ids for c in [contexts] if c is not None), *(d.token_ids for d in documents)]
    ids += [d.top_ids for d in documents] + [
        part for lens in lenses.values() for part in (lens.top_ids, lens.bottom_ids)
    ]
    tokens = token_strings(subject.joint.tokenizer, {i for part in ids for i in part.unique().tolist()} - {_PADDING})
    return Evidence(tokens, contexts, lenses, documents)


@torch.no_grad()
def top_contexts(subject: DiffSubject, latents: Sequence[int], table: ContextTable) -> Contexts | None:
    """The strongest places of the latents with the tokens around them; None if none of them fired.

    Tokens that are not counted have activation 0.
    """
    chosen = torch.tensor(list(latents))
    ids, positions = table.sequence_ids[chosen].cpu(), table.positions[chosen].cpu()
    which, rank = (ids >= 0).nonzero(as_tuple=True)
    if len(which) == 0:
        return None
    sequence, peak, latent = ids[which, rank], positions[which, rank], chosen[which]
    window = peak[:, None] + torch.arange(-_TOKENS_BEFORE, _TOKENS_AFTER + 1)
    context = subject.sequences.tokens.shape[1]
    inside = (window >= 0) & (window < context)
    window = window.clamp(0, context - 1)
    token_ids = torch.where(inside, subject.sequences.tokens[sequence[:, None], window], _PADDING)
    activations = torch.zeros(window.shape, dtype=torch.float32)
    for one in sequence.unique().tolist():
        here = sequence == one
        joined = subject.joint(subject.sequences.tokens[one : one + 1]).to(subject.sae.device)
        codes = subject.sae.encode(joined)[0].float().cpu()
        activations[here] = codes[window[here], latent[here][:, None]]
        activations[here] *= subject.counted(slice(one, one + 1))[0][window[here]]
    names: list[str] = [subject.sequences.dataset_names[i] for i in subject.sequences.datasets[sequence].tolist()]
    return Contexts(latent, token_ids, activations * inside, names)


@torch.no_grad()
def logit_lens(comparison: ModelComparison, label: str, latents: Sequence[int]) -> LogitLens | None:
    """What the latents' rows add to the logits of one model by its unembedding alone, without its last norm.

    None where the hook is not as wide as the residual stream.
    """
    weights = unembedding(comparison.joint.view(label).source_model)
    rows = comparison.decoder(label)[list(latents)]
    if weights is None or rows.shape[1] != weights.shape[0]:
        return None
    logits: Float[Tensor, "n_latents d_vocab"] = rows.to(weights) @ weights
    logits = (logits - logits.mean(dim=1, keepdim=True)).float().cpu()
    k = min(_N_LENS_TOKENS, logits.shape[1])
    top, bottom = logits.topk(k), logits.topk(k, largest=False)
    return LogitLens(torch.tensor(list(latents)), top.indices, top.values, bottom.indices, bottom.values)


def _document(subject: DiffSubject, found: DivergentSequence, labels: Sequence[str]) -> KLDocument:
    sequences = subject.sequences
    return KLDocument(
        token_ids=sequences.tokens[found.sequence],
        kl=found.kl,
        top_ids=torch.stack([found.next_tokens[label][0] for label in labels]),
        top_probabilities=torch.stack([found.next_tokens[label][1] for label in labels]),
        latents=found.latents,
        attributions=found.attribution,
        dataset=sequences.dataset_names[int(sequences.datasets[found.sequence])],
    )


def token_strings(tokenizer: Any, ids: set[int]) -> dict[int, str]:
    """Every token as text; its number in brackets where there is no tokenizer or it has no such token."""
    strings: dict[int, str] = {}
    for i in sorted(ids):
        text = None if tokenizer is None else tokenizer.decode([i])
        strings[i] = text if text else f"[{i}]"
    return strings
