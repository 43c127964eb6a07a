from __future__ import annotations

import pytest
import torch

from sae_lens_crosscoder.demo.probes import auroc, linear_probe


def test_auroc_counts_pairs_and_halves_ties() -> None:
    scores = torch.tensor([0.1, 0.4, 0.4, 0.9])
    positive = torch.tensor([False, True, False, True])
    # (0.4 > 0.1) + half of (0.4 = 0.4) + (0.9 > 0.1) + (0.9 > 0.4), of 4 pairs
    assert auroc(scores, positive) == pytest.approx(3.5 / 4)
    assert auroc(-scores, positive) == pytest.approx(0.5 / 4)


def test_a_probe_finds_a_planted_direction_and_no_exclusive_or() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 6, generator=generator)
    for labels, low, high in ((x[:, 1] + x[:, 2] > 0, 0.99, 1.0), ((x[:, 1] > 0) ^ (x[:, 2] > 0), 0.4, 0.6)):
        scores = linear_probe(x[:2000], labels[:2000], x[2000:])
        assert low <= auroc(scores, labels[2000:]) <= high
