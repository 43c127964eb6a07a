from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import batchtopk_config, run_config, source, standard_config
from sae_lens import LanguageModelSAERunnerConfig, StandardTrainingSAEConfig

from sae_lens_crosscoder import JOINT_HOOK_NAME, CrosscoderRunnerConfig, DatasetConfig
from sae_lens_crosscoder.errors import ConfigError, NotFoundError, ShapeError, SourceError


def minimal(sae: Any, **fields: Any) -> CrosscoderRunnerConfig[Any]:
    return CrosscoderRunnerConfig(
        sae=sae, sources=[source("base"), source("chat")], dataset_path="pile", training_tokens=40_960_000, **fields
    )


def values(**fields: Any) -> dict[str, Any]:
    """A configuration as a user writes it in a file."""
    written: dict[str, Any] = {
        "sae": {"architecture": "batchtopk_crosscoder", "d_in": 32, "d_sae": 64, "k": 4},
        "sources": [
            {"label": "base", "model_name": "gpt2", "hook_name": "blocks.1.hook_resid_pre", "d_in": 16},
            {"label": "chat", "model_name": "gpt2-chat", "hook_name": "blocks.1.hook_resid_pre", "d_in": 16},
        ],
        "dataset_path": "pile",
        "training_tokens": 100_000,
        "lr": 1e-4,
    }
    return {**written, **fields}


# ---------------------------------------------------------------------------------------- recipes


def test_the_standard_crosscoder_follows_kissane_et_al():
    cfg = minimal(standard_config())
    n_steps = 10_000
    assert (cfg.lr, cfg.train_batch_size_tokens) == (5e-5, 4096)
    assert (cfg.adam_beta1, cfg.adam_beta2) == (0.9, 0.999)
    assert (cfg.lr_warm_up_steps, cfg.lr_decay_steps) == (0, n_steps // 5)
    assert cfg.sae.l1_warm_up_steps == n_steps // 20
    assert (cfg.sae.l1_coefficient, cfg.sae.decoder_init_norm) == (2.0, 0.08)
    assert cfg.context_size == 1024


def test_the_batchtopk_crosscoder_follows_minder_et_al():
    cfg = minimal(batchtopk_config(d_sae=200, k=100))
    assert (cfg.lr, cfg.train_batch_size_tokens) == (1e-4, 2048)
    assert (cfg.lr_warm_up_steps, cfg.lr_decay_steps) == (1000, 0)
    assert cfg.dead_feature_window == 10_000_000 // 2048
    assert cfg.sae.aux_loss_coefficient == 1 / 32


def test_a_saelens_architecture_keeps_saelens_defaults():
    cfg = minimal(StandardTrainingSAEConfig(d_in=32, d_sae=64))
    saelens = LanguageModelSAERunnerConfig(sae=StandardTrainingSAEConfig(d_in=32, d_sae=64), dataset_path="pile")
    for name in ("lr", "train_batch_size_tokens", "dead_feature_window", "lr_warm_up_steps", "lr_decay_steps"):
        assert getattr(cfg, name) == getattr(saelens, name), name


def test_a_short_run_warms_up_over_a_tenth_of_its_steps():
    cfg = run_config(batchtopk_config(), training_tokens=64 * 50)
    assert cfg.lr_warm_up_steps == 5


def test_what_is_given_wins_over_the_recipe():
    cfg = minimal(
        standard_config(l1_warm_up_steps=3), lr=1.0, train_batch_size_tokens=8, lr_decay_steps=5, lr_warm_up_steps=7
    )
    assert (cfg.lr, cfg.train_batch_size_tokens, cfg.lr_decay_steps, cfg.lr_warm_up_steps) == (1.0, 8, 5, 7)
    assert cfg.sae.l1_warm_up_steps == 3


def test_what_saelens_asks_for_is_filled_in_from_the_sources():
    cfg = minimal(standard_config())
    assert (cfg.hook_name, cfg.model_name, cfg.model_class_name) == (
        JOINT_HOOK_NAME,
        "tiny-base_and_tiny-chat",
        "JointModel",
    )
    assert cfg.sae.source_widths == [16, 16]


# --------------------------------------------------------------------------------------- bad input


def test_a_width_that_is_not_that_of_the_sources_is_refused():
    with pytest.raises(ShapeError, match=r"sae.d_in=48, .* \(concat of base: 16, chat: 16\) are 32 wide. Set d_in=32"):
        run_config(StandardTrainingSAEConfig(d_in=48, d_sae=64))
    with pytest.raises(ShapeError, match="48"):
        run_config(standard_config(d_in=48))


def test_widths_of_the_crosscoder_that_are_not_those_of_the_sources_are_refused():
    with pytest.raises(ShapeError, match=r"source_widths=\[12, 20\], but the sources are \[16, 16\] wide"):
        run_config(standard_config(source_widths=[12, 20]))


def test_a_crosscoder_of_one_source_is_refused():
    with pytest.raises(ConfigError, match="needs at least two sources, but there is only 'base'"):
        run_config(standard_config(d_in=16), sources=[source("base")])


def test_a_saelens_sae_may_have_one_source():
    assert run_config(StandardTrainingSAEConfig(d_in=16, d_sae=8), sources=[source("base")]).joint_sources.d_in == 16


def test_a_run_without_sources_is_refused():
    with pytest.raises(SourceError, match="There are no sources"):
        run_config(standard_config(), sources=[])


def test_a_path_beside_a_mixture_is_refused():
    with pytest.raises(ConfigError, match="Both dataset_path='in-memory' and datasets are given"):
        run_config(standard_config(), datasets=[DatasetConfig(path="pile")])


@pytest.mark.parametrize("tokens", [63, 1])
def test_fewer_tokens_than_one_batch_are_refused(tokens: int):
    with pytest.raises(ConfigError, match=f"training_tokens={tokens} is less than a batch of 64 tokens"):
        run_config(standard_config(), training_tokens=tokens)


@pytest.mark.parametrize("tokens", [0, -5])
def test_a_run_of_no_tokens_is_refused(tokens: int):
    with pytest.raises(ConfigError, match=f"training_tokens={tokens} must be positive"):
        run_config(standard_config(), training_tokens=tokens)


def test_one_head_of_several_models_is_refused():
    with pytest.raises(ConfigError, match="hook_head_index is not defined for several sources"):
        run_config(standard_config(), hook_head_index=1)


def test_k_above_the_number_of_latents_is_refused_from_a_file_too():
    sae = {"architecture": "batchtopk_crosscoder", "d_in": 32, "d_sae": 64, "k": 65}
    with pytest.raises(ConfigError, match="must be positive and at most the number of latents, d_sae=64"):
        CrosscoderRunnerConfig.from_dict(values(sae=sae))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trainig_tokens": 5}, r"no field 'trainig_tokens'. Did you mean 'training_tokens'\?"),
        ({"sae": {"architecture": "batchtopk_crosscoder", "d_in": 32, "d_sae": 64, "kay": 3}}, "no field 'kay'"),
        ({"sae": {"architecture": "batchtopk_crosscoder", "d_in": 32}}, r"sae \(batchtopk_crosscoder\) lacks d_sae"),
        ({"sae": {"architecture": "crosscodr", "d_in": 32, "d_sae": 64}}, "'crosscodr' is not registered"),
        ({"sae": {"d_in": 32, "d_sae": 64}}, "needs `sae` with its `architecture`"),
        ({"sae": None}, "needs `sae` with its `architecture`"),
        ({"logger": {"log_to_wand": True}}, r"logger has no field 'log_to_wand'. Did you mean 'log_to_wandb'\?"),
        ({"datasets": [{"pth": "a"}], "dataset_path": ""}, r"no field 'pth'. Did you mean 'path'\?"),
        ({"training_tokens": "many"}, "training_tokens = 'many' is not valid"),
        ({"lr": "fast"}, "lr = 'fast' is not valid"),
    ],
)
def test_bad_input_of_a_file_is_named(fields: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        CrosscoderRunnerConfig.from_dict(values(**fields))


def test_bad_sources_of_a_file_are_named():
    sources = values()["sources"]
    sources[1]["labl"] = sources[1].pop("label")
    with pytest.raises(SourceError, match=r"no field 'labl'. Did you mean 'label'\?"):
        CrosscoderRunnerConfig.from_dict(values(sources=sources))


def test_a_value_of_another_kind_is_an_error_of_ours():
    with pytest.raises(ConfigError, match="seqpos_slice = 3 is not valid"):
        CrosscoderRunnerConfig.from_dict(values(seqpos_slice=3))


@pytest.mark.parametrize("name", ["logger", "datasets"])
def test_what_is_null_in_a_file_is_the_default(name: str):
    given, default = (CrosscoderRunnerConfig.from_dict(v) for v in (values(**{name: None}), values()))
    assert (given.lr, given.datasets) == (default.lr, default.datasets)


def test_sources_of_none_are_refused(unchecked_types: None):
    with pytest.raises(SourceError, match="There are no sources"):
        CrosscoderRunnerConfig.from_dict(values(sources=None))


# ------------------------------------------------------------------------------------------- files


def full() -> CrosscoderRunnerConfig[Any]:
    return run_config(
        batchtopk_config(k_start=8.0, k_annealing_steps=3),
        dataset_path="",
        datasets=[DatasetConfig("a/words", weight=0.75), DatasetConfig("ids", kind="tokens", weight=0.25)],
        sources=[source("base", device="cpu"), source("chat", model_from_pretrained_kwargs={"n_ctx": 32})],
        seqpos_slice=(1, None),
        buffer_dtype="bfloat16",
    )


def test_a_configuration_comes_back_from_its_dictionary():
    cfg = full()
    again = CrosscoderRunnerConfig.from_dict(cfg.to_dict())
    assert again.to_dict() == cfg.to_dict()
    assert (again.sources, again.datasets, again.seqpos_slice) == (cfg.sources, cfg.datasets, (1, None))
    assert type(again.sae) is type(cfg.sae)


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_a_configuration_comes_back_from_a_file(tmp_path: Path, suffix: str):
    cfg = full()
    file = tmp_path / f"run{suffix}"
    as_json = json.dumps(cfg.to_dict())
    file.write_text(as_json if suffix == ".json" else yaml.safe_dump(json.loads(as_json)))
    assert CrosscoderRunnerConfig.from_file(file).to_dict() == cfg.to_dict()


def test_a_checkpoint_path_that_is_read_back_gets_no_second_id(tmp_path: Path):
    cfg = run_config(standard_config(), tmp_path)
    assert cfg.checkpoint_path is not None
    assert cfg.checkpoint_path != str(tmp_path / "checkpoints")
    assert CrosscoderRunnerConfig.from_dict(cfg.to_dict()).checkpoint_path == cfg.checkpoint_path


def test_numbers_in_yaml_may_be_written_as_people_write_them(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(values(lr=None)).replace("lr: null", "lr: 1e-4"))
    assert yaml.safe_load(file.read_text())["lr"] == "1e-4"
    assert CrosscoderRunnerConfig.from_file(file).lr == 1e-4


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(NotFoundError, match=r"no configuration file at .*gone.yaml"):
        CrosscoderRunnerConfig.from_file(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{'sae': 1}", "a.json cannot be read"),
        ("a.yaml", "sae: [1", "a.yaml cannot be read"),
        ("a.yaml", "- 1\n- 2\n", "holds no mapping of fields but list"),
        ("a.yaml", "", "holds no mapping of fields but NoneType"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        CrosscoderRunnerConfig.from_file(tmp_path / name)


# ------------------------------------------------------------------------------------- the store's


def test_the_store_is_described_in_the_stores_own_words():
    cfg = full()
    store = cfg.store_config(None)
    assert store.buffer_tokens == 16 * 15  # sequences times positions of the slice
    assert (store.batch_size_tokens, store.batch_size_prompts, store.n_eval_sequences) == (64, 4, 8)
    assert (store.dtype, store.buffer_dtype, store.excluded_tokens) == ("float32", "bfloat16", (0,))
    assert (store.n_ahead_prompts, store.cached_activations_path) == (0, None)


def test_models_run_ahead_as_far_as_is_said_and_by_default_only_on_cuda():
    assert run_config(standard_config(), prefetch_llm_batches=3).store_config(None).n_ahead_prompts == 3 * 4
    assert run_config(standard_config(), prefetch_llm_batches=True).store_config(None).n_ahead_prompts == 4
    assert run_config(standard_config()).prefetch_llm_batches == 0


def test_a_path_to_cached_activations_counts_only_if_they_are_used(tmp_path: Path):
    path = str(tmp_path)
    assert (
        run_config(standard_config(), cached_activations_path=path).store_config(None).cached_activations_path is None
    )
    with pytest.raises(NotFoundError, match=r"is no cache of activations: it has no cache\.json"):
        run_config(standard_config(), cached_activations_path=path, use_cached_activations=True)
    with pytest.raises(NotFoundError, match="There is no cache of activations at nowhere"):
        run_config(standard_config(), cached_activations_path="nowhere", use_cached_activations=True)
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"written by SAELens's CacheActivationsRunner.*sae-lens-crosscoder cache"):
        run_config(standard_config(), cached_activations_path=path, use_cached_activations=True)


def test_saelens_chat_flag_makes_the_data_set_a_chat():
    assert run_config(standard_config(), use_chat_formatting=True).dataset_configs[0].kind == "chat"
    assert run_config(standard_config()).dataset_configs[0].kind == "auto"
