from __future__ import annotations

import logging
from itertools import islice
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import CONTEXT, SENTENCES, fresh_tokenizer, source, store_config, text_dataset, tiny_model
from other_tokenizers import other_bpe, whole_text

from sae_lens_crosscoder import JOINT_HOOK_NAME, DatasetConfig, JointModel, PairedActivationsStore, Sources
from sae_lens_crosscoder.activations import SequenceFormat, TrainingBatches
from sae_lens_crosscoder.errors import ConfigError, DataError, SourceError

HOOK = "blocks.1.hook_resid_pre"
FORM = SequenceFormat(CONTEXT)


def pair(other: Any, widths: tuple[int, int] = (16, 24), **fields: Any) -> JointModel:
    """Two random models, the second with this tokenizer."""
    sources = Sources(
        (source("base", d_in=widths[0]), source("chat", d_in=widths[1])),
        token_alignment=fields.pop("token_alignment", "character_offsets"),
        **fields,
    )
    models = [tiny_model(0, widths[0], tokenizer=fresh_tokenizer()), tiny_model(1, widths[1], tokenizer=other)]
    return JointModel(sources, models)


def store(model: JointModel, data: Any = None, **fields: Any) -> PairedActivationsStore:
    values = {"sequence_format": FORM, "mix_fraction": 0.0, **fields}
    documents = text_dataset() if data is None else data
    return PairedActivationsStore(model, [documents], [DatasetConfig(label="words")], store_config(**values))


def alone(model: Any, text: str, end: int) -> torch.Tensor:
    """A model's activation after the first `end` characters of a text, by its own cache on its own tokens."""
    encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    token = max(i for i, offset in enumerate(encoded["offset_mapping"]) if offset[1] == end)
    ids = torch.tensor([[0, *encoded["input_ids"]]])
    return model.run_with_cache(ids, names_filter=HOOK)[1][HOOK][0, token + 1]


# ------------------------------------------------------------------------------------ joint model


@pytest.mark.parametrize("text", [SENTENCES[0], "naïve 🦊 owls, é", "\n\n the  end "])
def test_joint_rows_are_the_activations_of_each_model_alone_on_its_own_tokens(text: str) -> None:
    model = pair(other_bpe())
    assert model.aligner is not None
    ends = model.aligner.align([text])[0].ends
    rows = model(model.to_tokens(text))
    assert rows.shape == (len(ends), 40)
    assert len(ends) > 5
    for row, end in zip(rows, ends, strict=True):
        expected = torch.cat([alone(source_model, text, end) for source_model in model.source_models])
        torch.testing.assert_close(row, expected)


def test_rows_of_several_texts_are_those_of_each_in_order() -> None:
    model = pair(other_bpe())
    one_by_one = torch.cat([model(model.to_tokens(text)) for text in SENTENCES])
    torch.testing.assert_close(model(model.to_tokens(SENTENCES)), one_by_one)
    cached = model.run_with_cache(model.to_tokens(SENTENCES), names_filter=[JOINT_HOOK_NAME], stop_at_layer=1)[1]
    torch.testing.assert_close(cached[JOINT_HOOK_NAME], one_by_one)


def test_a_difference_is_that_of_the_two_models_at_the_same_place_of_the_text() -> None:
    model = pair(other_bpe(), (16, 16), combine="difference")
    base, chat = model.source_activations(model.to_tokens(SENTENCES))
    assert torch.equal(model(model.to_tokens(SENTENCES)), chat - base)


def test_two_layers_of_one_model_share_its_tokens_and_its_forward_pass() -> None:
    own, other = tiny_model(0, tokenizer=fresh_tokenizer()), tiny_model(1, tokenizer=other_bpe())
    sources = Sources(
        (source("early"), source("other"), source("late", "blocks.2.hook_resid_pre")),
        token_alignment="character_offsets",
    )
    model = JointModel(sources, [own, other, own])
    runs: list[int] = []
    own.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    rows = model(model.to_tokens(SENTENCES[0]))
    assert len(runs) == 1
    assert torch.equal(rows[:, :16], pair(other_bpe())(model.to_tokens(SENTENCES[0]))[:, :16])
    assert not torch.equal(rows[:, :16], rows[:, 32:])


def test_a_view_without_a_replacement_is_the_model_on_its_own_tokens() -> None:
    model = pair(other_bpe())
    rows = model.to_tokens(SENTENCES[1])
    own: Any = model.source_models[1]
    ids = own.tokenizer(SENTENCES[1], add_special_tokens=False, return_tensors="pt")["input_ids"]
    expected = own(torch.cat([torch.zeros(1, 1, dtype=torch.long), ids], dim=1))
    torch.testing.assert_close(model.view("chat")(rows), expected)
    kept = model.view("chat").run_with_hooks(rows, fwd_hooks=[(JOINT_HOOK_NAME, lambda joint, hook: joint)])
    torch.testing.assert_close(kept, expected)
    assert torch.equal(model.view("chat")(rows, return_type=None), model(rows))


def test_a_model_without_a_fast_tokenizer_is_refused() -> None:
    with pytest.raises(SourceError, match="Source 'chat' has no tokenizer"):
        pair(None)


# ------------------------------------------------------------------------------------------ store


def test_batches_are_the_rows_of_the_packed_text_in_order() -> None:
    model = pair(other_bpe())
    served = torch.cat(list(islice(store(model), 12)))
    sequences = store(model).get_batch_tokens(60)
    torch.testing.assert_close(served, model(sequences)[: 12 * 32])


@pytest.mark.parametrize("form", [FORM, SequenceFormat(CONTEXT, sequence_separator_token=None)])
def test_equal_tokenizers_keep_everything_and_give_the_batches_of_models_that_read_the_same_ids(
    form: SequenceFormat,
) -> None:
    same = fresh_tokenizer()
    same.pad_token = "<bos>"
    aligned = store(pair(same), sequence_format=form)
    usual = store(pair(same, token_alignment="same_ids"), sequence_format=form, excluded_tokens=(0,))
    assert aligned.kept_shares == {"base": 1.0, "chat": 1.0}
    torch.testing.assert_close(torch.cat(list(islice(aligned, 20))), torch.cat(list(islice(usual, 20))))


def test_tokenizers_that_only_differ_in_a_special_token_keep_everything_too() -> None:
    other = fresh_tokenizer()
    other.add_special_tokens({"eos_token": "<turn>"})
    aligned = store(pair(other), excludes_special_tokens=True)
    assert aligned.model.aligner is not None
    assert len(aligned.model.aligner.tokenizers) == 2
    assert aligned.kept_shares == {"base": 1.0, "chat": 1.0}


def test_the_share_that_is_kept_is_measured_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = pair(other_bpe())
    with caplog.at_level(logging.INFO):
        made = store(model, n_eval_sequences=8)
    head = made.eval_sequences["words"]
    assert head.shape == (8, 2 * CONTEXT)
    n_rows = len(model(head)) + len(model(made.get_batch_tokens()))
    for position, label in enumerate(("base", "chat")):
        n_text = sum(
            int(model.own_tokens(position, rows).is_text.sum())  # type: ignore[union-attr]
            for rows in (head, store(model, n_eval_sequences=8).get_batch_tokens())
        )
        assert made.kept_shares[label] == pytest.approx(n_rows / n_text)
        assert 0.1 < made.kept_shares[label] < 1
        assert f"{label}: {made.kept_shares[label]:.1%}" in caplog.text


def test_shares_of_a_mixture_have_the_weights_of_its_data_sets() -> None:
    model = pair(other_bpe())
    data = [text_dataset(), Dataset.from_dict({"text": ["é🦊 " * 20] * 60})]
    made = [store(model, documents).kept_shares["chat"] for documents in data]
    configs = [DatasetConfig(label="words", weight=0.25), DatasetConfig(label="foxes", weight=0.75)]
    mixed = PairedActivationsStore(model, data, configs, store_config(sequence_format=FORM))
    assert made[0] != pytest.approx(made[1])
    assert mixed.kept_shares["chat"] == pytest.approx(0.25 * made[0] + 0.75 * made[1])


def test_outliers_of_either_model_are_dropped() -> None:
    model = pair(other_bpe())
    planted = int(model.own_tokens(1, store(model).get_batch_tokens()).ids[0, 3])  # type: ignore[union-attr]
    model.source_models[1].W_E.data[planted] = 30.0  # type: ignore[union-attr, index]
    served = torch.cat(list(islice(store(model, max_norm_multiple=8.0), 12)))
    unfiltered = torch.cat(list(islice(store(model), 12)))
    assert served[:, 16:].norm(dim=-1).max() < 60 < unfiltered[:, 16:].norm(dim=-1).max()


def test_get_activations_is_what_saelens_asks_a_store_for() -> None:
    made = store(pair(other_bpe()))
    rows = made.get_batch_tokens()
    assert torch.equal(made.get_activations(rows), made.model(rows))


@pytest.mark.filterwarnings("ignore:The data set ended")
def test_a_store_that_was_saved_while_a_thread_harvested_goes_on(tmp_path: Any) -> None:
    def made() -> PairedActivationsStore:
        return store(pair(other_bpe()), text_dataset(1500), mix_fraction=0.5)

    plain = torch.cat(list(islice(made(), 30)))
    broken = made()
    batches = TrainingBatches(broken, in_background=True)
    head = torch.cat(list(islice(batches, 20)))
    with batches.paused():
        broken.save(str(tmp_path / "state.safetensors"))
    batches.close()
    resumed = made()
    resumed.load(str(tmp_path / "state.safetensors"))
    torch.testing.assert_close(torch.cat([head, *islice(resumed, 10)]), plain)


# ----------------------------------------------------------------------------------------- errors


def test_tokenizers_that_share_hardly_any_place_are_refused_before_training() -> None:
    with pytest.raises(DataError, match=r"Hardly any tokens .*base: .*chat: .*at least 10%"):
        store(pair(whole_text()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"excluded_tokens": (0,)}, "exclude_special_tokens as a list"),
        ({"sequence_format": SequenceFormat(CONTEXT, sequence_separator_token=7)}, "sequence_separator_token=7"),
        ({"seqpos_slice": (1, None)}, "seqpos_slice"),
    ],
)
def test_what_needs_the_same_ids_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"token_alignment='character_offsets' does not go with {message}"):
        store(pair(other_bpe()), **fields)
