"""Selection problems with all their scores, which both encoders are tested on."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from sae_lens_crosscoder.training.sparse.encoder import PairEncoder


class Problem:
    """Inputs, weights, biases and norms, and the scores of all pairs in float64."""

    def __init__(self, seed: int, shape: tuple[int, int, int], kind: str) -> None:
        generator = torch.Generator().manual_seed(seed)
        n, d, f = shape
        self.x = torch.randn(n, d, dtype=torch.float64, generator=generator)
        self.W_enc = torch.randn(f, d, dtype=torch.float64, generator=generator).T
        self.b_enc = torch.randn(f, dtype=torch.float64, generator=generator)
        self.norms = torch.rand(f, dtype=torch.float64, generator=generator)
        if kind == "ties":  # few different numbers, all exact in float64, whatever the order of sums
            self.x, self.W_enc, self.b_enc = self.x.round(), self.W_enc.round(), self.b_enc.round()
            self.norms = (2 * self.norms).round()
        elif kind == "all equal":
            self.x, self.W_enc = torch.ones_like(self.x), torch.ones_like(self.W_enc)
            self.b_enc, self.norms = torch.zeros_like(self.b_enc), torch.ones_like(self.norms)
        elif kind == "few positive":
            self.b_enc = self.b_enc - 2 * d**0.5
        elif kind == "none positive":
            self.b_enc = self.b_enc - 1e3
        elif kind == "uneven rows":
            self.x = self.x * (10 ** torch.linspace(-3, 3, n, dtype=torch.float64))[:, None]
        self.scores = torch.relu(self.x @ self.W_enc + self.b_enc) * self.norms

    def encoder(self) -> PairEncoder:
        return PairEncoder(self.x, self.W_enc, self.b_enc, self.norms)


KINDS = ("random", "ties", "all equal", "few positive", "none positive", "uneven rows")
problems = st.builds(
    Problem,
    st.integers(0, 10_000),
    st.sampled_from([(5, 3, 8), (40, 6, 21), (300, 4, 12), (17, 9, 64)]),
    st.sampled_from(KINDS),
)


def first_largest(scores: torch.Tensor, k: int) -> list[int]:
    """Positions of the k largest positive numbers, of equal ones the first."""
    values = scores.tolist()
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    return sorted(i for i in order[:k] if values[i] > 0)
