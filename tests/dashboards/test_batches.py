"""sae-dashboard's batch files of each source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dashboard_subjects import DEAD, SECOND_ONLY, aligned_subject, needs_sae_dashboard, subject

from sae_lens_crosscoder.dashboards import DashboardConfig
from sae_lens_crosscoder.errors import ConfigError

pytestmark = needs_sae_dashboard

SMALL = DashboardConfig(n_latents_per_page=5)


def batches(made: Any, out: Path, latents: Any = range(8), **names: Any) -> dict[str, list[dict[str, Any]]]:
    from sae_lens_crosscoder.dashboards import write_batches

    folders = write_batches(made, list(latents), out, names or None, SMALL)

    def no_constant(name: str) -> Any:
        raise AssertionError(name)

    return {
        label: [
            json.loads((folder / f"batch-{i}.json").read_text(), parse_constant=no_constant)
            for i in range(len(list(folder.iterdir())))
        ]
        for label, folder in folders.items()
    }


def test_every_source_has_the_same_latents_with_its_own_logits_and_row(tmp_path: Path) -> None:
    made = subject(widths=(16, 24))
    written = batches(made, tmp_path)
    assert [len(batch["features"]) for batch in written["chat"]] == [5, 3]
    features = {label: [f for batch in found for f in batch["features"]] for label, found in written.items()}
    for position, label in enumerate(("base", "chat")):
        weights = made.joint.source_models[position].W_U
        rows = made.sae.W_dec[:, made.joint.sources.columns(label)].detach()
        for feature in features[label]:
            latent = feature["feature_index"]
            assert feature["vector"] == pytest.approx(rows[latent].tolist())
            top = (rows[latent] @ weights).topk(10)
            assert feature["pos_values"] == pytest.approx(top.values.tolist(), rel=1e-4, abs=1e-12)
            bottom = (rows[latent] @ weights).topk(10, largest=False)
            assert feature["neg_values"] == pytest.approx(bottom.values.tolist(), rel=1e-4, abs=1e-12)
            bars = feature["logits_hist_data_bar_values"]
            assert latent == SECOND_ONLY or bars[0] < 0.9 * bottom.values[0] < 0 < 0.9 * top.values[0] < bars[-1]
            if latent != SECOND_ONLY:
                assert feature["pos_str"] == [made.joint.tokenizer.decode([i]) for i in top.indices.tolist()]
    for one, other in zip(features["base"], features["chat"], strict=True):
        assert one["activations"] == other["activations"]
        assert one["feature_index"] == other["feature_index"]
        assert one["frac_nonzero"] == other["frac_nonzero"]


def test_a_batch_says_where_it_is_from(tmp_path: Path) -> None:
    from sae_lens_crosscoder.dashboards import BatchNames

    made = subject()
    name = BatchNames("tiny-chat-it", "7-crosscoder-24", layer=7, suffix="v2")
    written = batches(made, tmp_path, [0], chat=name)
    about = {key: value for key, value in written["chat"][0].items() if key != "features"}
    assert about == {"model_id": "tiny-chat-it", "layer": 7, "sae_set": "7-crosscoder-24", "sae_id_suffix": "v2"}
    about = {key: value for key, value in written["base"][0].items() if key != "features"}
    assert about == {"model_id": "tiny-base", "layer": 1, "sae_set": "crosscoder", "sae_id_suffix": None}
    feature = written["base"][0]["features"][0]
    assert (feature["n_prompts_total"], feature["n_tokens_in_prompt"], feature["dataset"]) == (24, 16, "made up")
    with pytest.raises(ConfigError, match=r"names for \['chatt'\]"):
        batches(made, tmp_path, [0], chatt=name)


def test_contexts_hold_decoded_tokens_and_qualify_where_the_latent_fires(tmp_path: Path) -> None:
    made = subject()
    (batch,) = batches(made, tmp_path, [0, DEAD])["base"]
    feature, dead = batch["features"]
    first = feature["activations"][0]
    assert first["values"][first["qualifying_token_index"]] == max(first["values"]) > 0
    assert len(first["tokens"]) == len(first["values"]) == made.tokens.shape[1] - 1
    assert not [a for a in dead["activations"] if a["bin_min"] == -1]


def test_logits_are_named_by_each_models_own_tokens_and_contexts_by_the_firsts(tmp_path: Path) -> None:
    made = aligned_subject()
    written = batches(made, tmp_path, [0])
    tokenizers = [model.tokenizer for model in made.joint.source_models]
    for position, label in enumerate(("base", "chat")):
        feature = written[label][0]["features"][0]
        row = made.sae.W_dec[0, made.joint.sources.columns(label)]
        ids = (row @ made.joint.source_models[position].W_U).topk(10).indices.tolist()
        known = len(tokenizers[position])
        expected = [tokenizers[position].decode([i]) for i in ids if i < known]
        assert [s for i, s in zip(ids, feature["pos_str"], strict=True) if i < known] == expected
        assert all(token for context in feature["activations"] for token in context["tokens"])
        assert "".join(feature["activations"][0]["tokens"]).strip()


def test_a_stopped_call_goes_on_with_the_next_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_lens_crosscoder.dashboards import batches as module
    from sae_lens_crosscoder.dashboards import write_batches

    made, calls = subject(), list[list[int]]()
    read = module.read_latents

    def stopping(*arguments: Any) -> Any:
        calls.append(arguments[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read(*arguments)

    monkeypatch.setattr(module, "read_latents", stopping)
    with pytest.raises(KeyboardInterrupt):
        write_batches(made, list(range(12)), tmp_path, config=SMALL)
    write_batches(made, list(range(12)), tmp_path, config=SMALL)
    assert calls == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [5, 6, 7, 8, 9], [10, 11]]
    assert not (tmp_path / ".activations").exists()
    with torch.no_grad():
        made.joint.source_models[0].W_U[0, 0] += 1
    write_batches(made, list(range(12)), tmp_path, config=SMALL)
    assert len(calls) == 7
