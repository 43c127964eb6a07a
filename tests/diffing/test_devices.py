"""Tensors are made where the inputs are: a default device that holds no numbers stands for a GPU beside them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from dictionaries import make_sources, random_activations, random_sae
from torch import Tensor

from sae_lens_crosscoder.diffing import (
    ClassThresholds,
    LatentScaling,
    LatentStatistics,
    StageRotations,
    TokenBatch,
    TopContexts,
    classify_latents,
    decoder_cosine,
    decoder_norm_shares,
    decoder_norms,
    latent_scaling,
    rotation,
    run_pass,
)

SAE, X, NUMBERS = random_sae(), random_activations(), torch.arange(200)
HALVES = (NUMBERS >= 100).long()
SOURCES = make_sources()


def batches() -> list[TokenBatch]:
    return [
        TokenBatch(X[part], NUMBERS[part] // 10, NUMBERS[part] % 10, {"half": HALVES[part]})
        for part in (slice(0, 90), slice(90, 200))
    ]


def classes() -> list[str]:
    shares = decoder_norm_shares(decoder_norms(SAE.W_dec, [6, 6], [0.5, 2.0]))
    return classify_latents(shares, ClassThresholds(), ("base", "chat"))


def statistics() -> list[Tensor]:
    one, other = LatentStatistics({"half": ["a", "b"]}), LatentStatistics({"half": ["a", "b"]})
    for accumulator, batch in zip((one, other), batches(), strict=True):
        run_pass(SAE, [batch], [accumulator], SOURCES)
    one.merge(other)
    result = one.compute()
    return [result.max, result.mean_active, result.quantile(0.5), result.groups["half"].mass_share]


def contexts() -> list[Tensor]:
    one, other = TopContexts(k=3), TopContexts(k=3)
    for accumulator, batch in zip((one, other), batches(), strict=True):
        run_pass(SAE, [batch], [accumulator], SOURCES)
    one.merge(other)
    table = one.compute()
    return [table.values, table.sequence_ids, table.positions]


def scaling() -> list[Tensor]:
    merged = LatentScaling("chat")
    for batch in batches():
        part = LatentScaling("chat")
        run_pass(SAE, [batch], [part], SOURCES)
        merged.merge(part)
    result = merged.compute()
    flags = result.flags(result.n_active > 0)
    ranks = latent_scaling(SAE, [X], "chat", SOURCES).rank_sum(among=result.n_active > 0)
    return [result.nu_error, result.nu_reconstruction, flags.confirmed, ranks]


def rotations() -> list[Tensor]:
    cosines = rotation(SAE.W_dec, SAE.W_dec.flip(0), [6, 6], [0.5, 2.0])
    stages = StageRotations(cosines, cosines.flip(0), percentile=20.0)
    return [cosines, stages.model_ranks, stages.joint_ranks]


def cosines() -> list[Tensor]:
    return [decoder_cosine(SAE.W_dec, [6, 6])]


@pytest.mark.parametrize("read", [classes, statistics, contexts, scaling, rotations, cosines])
def test_what_is_read_does_not_depend_on_the_default_device(read: Callable[[], list[Tensor] | list[str]]):
    expected = read()
    with torch.device("meta"):
        found = read()
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, Tensor):
            torch.testing.assert_close(one, other, equal_nan=True)
        else:
            assert one == other
