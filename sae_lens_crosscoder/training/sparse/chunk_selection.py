"""The pairs that stay, selected in shapes that do not depend on the data.

All k * batch pairs are given; where fewer scores are positive, the rest have score and code 0 and get no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae_lens_crosscoder.training.sparse.chunk_encoder import ChunkEncoder
from sae_lens_crosscoder.training.sparse.encoder import ScoredPairs, true_positions
from sae_lens_crosscoder.training.sparse.ties import positions_of_largest


def largest_of_batch(encoder: ChunkEncoder, latents: slice, n: int) -> ScoredPairs:
    """The n pairs with the largest scores, in the order of rows, then latents.

    The n largest of every chunk join a pool that is cut to its n largest: all chunks before are in the pool's own
    order, so that of equal scores the first of the batch stay.

    Args:
        encoder: Scores the batch.
        latents: The latents that are selected among.
        n: Pairs that stay.
    """
    flat = torch.empty(0, dtype=torch.long, device=encoder.device)
    scores = torch.empty(0, dtype=encoder.dtype, device=encoder.device)
    for rows in encoder.chunks:
        chunk = encoder.scores(rows, latents)
        found = positions_of_largest(chunk.view(-1), min(n, chunk.numel()))
        pool = torch.cat([flat, _flat(found // chunk.shape[1], found % chunk.shape[1], rows, latents, encoder)])
        pool_scores = torch.cat([scores, chunk.view(-1)[found]])
        kept = positions_of_largest(pool_scores, min(n, len(pool)))
        flat, scores = pool[kept], pool_scores[kept]
    return encoder.scored(flat, scores)


def largest_of_rows(encoder: ChunkEncoder, k: int) -> ScoredPairs:
    """The k pairs of every row with the largest scores, in the order of rows, then latents."""
    latents = slice(0, encoder.d_sae)
    flat: list[Tensor] = []
    scores: list[Tensor] = []
    for rows in encoder.chunks:
        chunk = encoder.scores(rows, latents)
        found = positions_of_largest(chunk, k)
        row = torch.arange(len(chunk), device=encoder.device)[:, None]
        flat.append(_flat(row, found, rows, latents, encoder).view(-1))
        scores.append(chunk.gather(1, found).view(-1))
    return encoder.scored(torch.cat(flat), torch.cat(scores))


def positive_pairs(encoder: ChunkEncoder, max_share: float) -> ScoredPairs | None:
    """All pairs with a positive score, in the order of rows; None if they are more than a share of all pairs.

    Their number is read back from the device after every chunk.
    """
    latents = slice(0, encoder.d_sae)
    flat: list[Tensor] = []
    scores: list[Tensor] = []
    n_found = 0
    for rows in encoder.chunks:
        chunk = encoder.scores(rows, latents)
        found = true_positions(chunk > 0)
        flat.append(found + rows.start * encoder.d_sae)
        scores.append(chunk.view(-1)[found])
        n_found += len(found)
        if n_found > max_share * encoder.n_rows * encoder.d_sae:
            return None
    return encoder.scored(torch.cat(flat), torch.cat(scores))


def _flat(row: Tensor, latent: Tensor, rows: slice, latents: slice, encoder: ChunkEncoder) -> Tensor:
    return (row + rows.start) * encoder.d_sae + (latent + latents.start)
