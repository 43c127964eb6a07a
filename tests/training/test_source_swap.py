"""A crosscoder does not know the order of its sources."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import batchtopk_config, run_config, source, standard_config, tiny_model, token_dataset

from sae_lens_crosscoder import (
    BatchTopKTrainingCrosscoder,
    CrosscoderTrainingRunner,
    JointModel,
    Source,
    StandardTrainingCrosscoder,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:The data set ended"),
    pytest.mark.filterwarnings("ignore:Getting length of SAE objects:DeprecationWarning"),
]

SOURCES = [source("base", d_in=16), source("chat", d_in=24)]
ORDER = torch.cat([torch.arange(16, 40), torch.arange(16)])


def train(sae: Any, sources: list[Source]) -> Any:
    cfg = run_config(sae.cfg, sources=sources, dtype="float64", training_tokens=64 * 25, n_eval_batches=0)
    models = {
        "base": tiny_model(0, dtype=torch.float64),
        "chat": tiny_model(1, d_model=24, dtype=torch.float64),
    }
    joint = JointModel(cfg.joint_sources, [models[s.label] for s in sources])
    return CrosscoderTrainingRunner(cfg, token_dataset(400), joint, sae).run()


@pytest.mark.parametrize(
    ("made", "config"),
    [(StandardTrainingCrosscoder, standard_config), (BatchTopKTrainingCrosscoder, batchtopk_config)],
    ids=["standard", "batchtopk"],
)
def test_training_with_sources_in_the_other_order_gives_the_permuted_crosscoder(float64: None, made: Any, config: Any):
    first = made(config(d_in=40, dtype="float64", source_widths=[16, 24]))
    second = made(config(d_in=40, dtype="float64", source_widths=[24, 16]))
    with torch.no_grad():
        second.W_enc.copy_(first.W_enc[ORDER])
        second.W_dec.copy_(first.W_dec[:, ORDER])
        start = first.W_dec.clone()
    first, second = train(first, SOURCES), train(second, SOURCES[::-1])
    assert (first.W_dec - start).abs().max() > 1e-3
    torch.testing.assert_close(second.W_enc, first.W_enc[ORDER], rtol=0, atol=1e-10)
    torch.testing.assert_close(second.W_dec, first.W_dec[:, ORDER], rtol=0, atol=1e-10)
    torch.testing.assert_close(second.b_dec, first.b_dec[ORDER], rtol=0, atol=1e-10)
    torch.testing.assert_close(second.b_enc, first.b_enc, rtol=0, atol=1e-10)
    torch.testing.assert_close(second.source_scales, first.source_scales.flip(0), rtol=1e-12, atol=0)
    if made is BatchTopKTrainingCrosscoder:
        torch.testing.assert_close(second.topk_threshold, first.topk_threshold, rtol=1e-10, atol=0)
