"""What this package assumes of SAELens, TransformerLens and datasets, one test for each assumption.

A release that breaks one of them breaks the test that names it.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset, interleave_datasets
from helpers import (
    batchtopk_config,
    crosscoder,
    gpt2_folder,
    paired_store,
    run_config,
    standard_config,
    tiny_model,
    tiny_pair,
    token_dataset,
)
from sae_lens import (
    SAE,
    ActivationsStore,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    SAETrainer,
    StandardSAE,
    StandardSAEConfig,
    TrainingSAE,
    run_evals,
)
from sae_lens.load_model import HookedProxyLM
from sae_lens.saes.sae import SAEMetadata
from sae_lens.util import filter_valid_dataclass_fields

from sae_lens_crosscoder import _saelens
from sae_lens_crosscoder._saelens import (
    ActivationScaler,
    EvalConfig,
    extract_layer_from_tlens_hook_name,
    get_sae_training_class,
    get_special_token_from_cfg,
    get_special_token_ids,
    load_model,
    str_to_dtype,
)

TOKENS = torch.randint(0, 300, (2, 6), generator=torch.Generator().manual_seed(0))


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


# --------------------------------------------------------------------------------- names and types


@pytest.mark.parametrize("name", sorted(_saelens.__all__))
def test_every_saelens_name_that_is_used_exists(name: str):
    assert getattr(importlib.import_module("sae_lens_crosscoder._saelens"), name) is not None


def test_metadata_take_any_name_and_give_none_for_a_missing_one():
    metadata = SAEMetadata(hook_name="x")
    metadata["sources"] = [1]
    assert metadata.sources == metadata["sources"] == [1]
    assert vars(metadata)["sources"] == metadata.to_dict()["sources"] == [1]
    assert metadata.missing is None
    assert "missing" not in vars(metadata)


def test_training_classes_are_found_by_architecture_and_an_unknown_one_is_a_key_error():
    assert get_sae_training_class("standard")[1].architecture() == "standard"
    with pytest.raises(KeyError):
        get_sae_training_class("no such")


def test_ours_are_registered():
    for config in (standard_config(), batchtopk_config()):
        sae_class, config_class = get_sae_training_class(config.architecture())
        assert config_class is type(config)
        assert issubclass(sae_class, TrainingSAE)


def test_dtypes_are_read_by_name():
    assert [str_to_dtype(name) for name in ("float32", "bfloat16", "float16", "float64")] == [
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float64,
    ]


def test_only_fields_of_a_dataclass_pass_the_filter():
    assert filter_valid_dataclass_fields({"d_in": 1, "zzz": 2}, StandardSAEConfig) == {"d_in": 1}


@pytest.mark.parametrize(
    ("hook_name", "layer"),
    [
        ("blocks.13.hook_resid_pre", 13),
        ("blocks.2.attn.hook_z", 2),
        ("transformer.h.1", 1),
        ("hook_embed", None),
        ("ln_final.hook_normalized", None),
    ],
)
def test_the_layer_of_a_hook_is_read_from_its_name(hook_name: str, layer: int | None):
    assert extract_layer_from_tlens_hook_name(hook_name) == layer


def test_special_tokens_are_bos_eos_pad_and_separator():
    class Tokenizer:
        bos_token_id, eos_token_id, pad_token_id, sep_token_id = 1, 2, 3, None

    assert set(get_special_token_ids(Tokenizer())) == {1, 2, 3}  # type: ignore[arg-type]
    assert get_special_token_from_cfg("bos", Tokenizer()) == 1  # type: ignore[arg-type]
    assert get_special_token_from_cfg("eos", Tokenizer()) == 2  # type: ignore[arg-type]
    assert get_special_token_from_cfg(7, Tokenizer()) == 7  # type: ignore[arg-type]
    assert get_special_token_from_cfg(None, Tokenizer()) is None  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_hooked_transformer_that_stops_at_a_layer_returns_the_residual_stream_before_it(layer: int):
    model = tiny_model()
    name = f"blocks.{layer}.hook_resid_pre"
    stopped = model(TOKENS, stop_at_layer=layer, return_type=None, prepend_bos=False)
    assert torch.equal(stopped, model.run_with_cache(TOKENS, names_filter=name)[1][name])


def test_a_hooked_transformer_runs_the_layer_whose_input_is_cached_unless_it_stops_before():
    model = tiny_model()
    ran: list[int] = []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    model.run_with_cache(TOKENS, names_filter=["blocks.1.hook_resid_pre"], stop_at_layer=2, prepend_bos=False)
    assert ran == [0, 1]
    ran.clear()
    model(TOKENS, stop_at_layer=1, return_type=None)
    assert ran == [0]


def test_a_hooked_transformer_has_what_a_joint_model_reads_of_it():
    model = tiny_model()
    assert model.W_E.device.type == "cpu"
    assert model.cfg.d_vocab == 300
    assert model.tokenizer is None
    assert "blocks.1.hook_resid_pre" in model.hook_dict
    assert list(model.hook_dict["blocks.1.hook_resid_pre"].fwd_hooks) == []


def test_hooks_show_in_fwd_hooks_only_while_they_are_set():
    view = tiny_pair().view("base")
    seen: list[int] = []

    def noting(activation: torch.Tensor, hook: Any) -> None:
        seen.append(len(view.joint_hook.fwd_hooks))

    view.run_with_hooks(TOKENS, fwd_hooks=[(view.joint_hook.name, noting)])
    assert seen == [1]
    assert view.joint_hook.fwd_hooks == []


def test_both_logits_and_loss_a_token_come_from_one_call():
    output = tiny_model()(TOKENS, return_type="both", loss_per_token=True)
    logits, loss = output
    assert torch.equal(logits, output.logits)
    assert loss.shape == (2, 5)


def test_a_hooked_proxy_takes_hook_names_and_refuses_unknown_modules_by_a_value_error(tmp_path: Path):
    folder = gpt2_folder(tmp_path)
    model = load_model("AutoModelForCausalLM", folder, "cpu", {}, hook_names=["transformer.h.1"])
    assert isinstance(model, HookedProxyLM)
    assert list(model.hook_dict) == ["transformer.h.1"]
    assert next(model.parameters()).device.type == "cpu"
    _, cache = model.run_with_cache(TOKENS, names_filter=["transformer.h.1"], stop_at_layer=2, prepend_bos=False)
    assert cache["transformer.h.1"].shape == (2, 6, 16)
    with pytest.raises(ValueError, match="hook_names not found"):
        load_model("AutoModelForCausalLM", folder, "cpu", {}, hook_names=["transformer.h.7"])


# ----------------------------------------------------------------------------------------- store


def test_the_store_takes_the_arguments_that_ours_passes():
    wanted = {
        "model", "dataset", "streaming", "hook_name", "hook_head_index", "context_size", "d_in", "n_batches_in_buffer",
        "total_training_tokens", "store_batch_size_prompts", "train_batch_size_tokens", "prepend_bos",
        "normalize_activations", "device", "dtype", "seqpos_slice", "autocast_lm",
        "exclude_special_tokens", "activations_mixing_fraction",
    }  # fmt: skip
    assert wanted <= set(parameters(ActivationsStore.__init__))


def test_the_store_has_what_ours_overrides_and_calls():
    assert parameters(ActivationsStore.get_batch_tokens) == [
        "self",
        "batch_size",
        "raise_at_epoch_end",
        "move_to_model_device",
    ]
    for name in ("get_activations", "get_data_loader", "from_config", "save", "load", "load_from_checkpoint"):
        assert callable(getattr(ActivationsStore, name)), name
    store = paired_store()
    assert (store.n_dataset_processed, store.training_context_size) == (0, 16)
    assert "n_dataset_processed" in ActivationsStore.state_dict(store)


def test_at_the_end_of_the_data_the_store_raises_and_begins_anew():
    store = paired_store(data=token_dataset(6))
    first = store.get_batch_tokens(raise_at_epoch_end=True)
    with pytest.raises(StopIteration):
        store.get_batch_tokens(raise_at_epoch_end=True)
    assert torch.equal(store.get_batch_tokens(raise_at_epoch_end=True), first)


def test_next_of_a_store_goes_on_with_one_data_loader_until_it_is_dropped():
    store = paired_store(mix_fraction=0.0)
    loader = iter(store)
    assert loader is store
    next(store)
    assert store._dataloader is not None


def test_a_stream_of_data_resumes_exactly_where_its_state_says():
    def mixture() -> IterableDataset:
        streams = []
        for seed in (0, 1):
            rows = Dataset.from_dict({"i": list(range(seed * 10_000, seed * 10_000 + 1500))}).to_iterable_dataset()
            streams.append(
                rows.map(lambda batch: {"j": [i * 2 for i in batch["i"]]}, batched=True, batch_size=1000).skip(3)
            )
        return interleave_datasets(streams, probabilities=[0.7, 0.3], seed=5, stopping_strategy="all_exhausted")

    unbroken = list(mixture())
    first = mixture()
    head = []
    for row in first:
        head.append(row)
        if len(head) == 2500:
            state = first.state_dict()
            break
    second = mixture()
    second.load_state_dict(state)
    assert [*head, *second] == unbroken


# ----------------------------------------------------------------------------------------- evals


def test_run_evals_takes_no_more_of_a_store_than_ours_gives():
    class Store:
        store_batch_size_prompts, context_size = 2, 6
        n_given = 0

        def get_batch_tokens(self, batch_size: int | None = None) -> torch.Tensor:
            self.n_given += 1
            return TOKENS

        def reset_input_dataset(self) -> None: ...

    sae = StandardSAE(StandardSAEConfig(d_in=32, d_sae=8))
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_joint"
    store: Any = Store()
    config = EvalConfig(batch_size_prompts=2, n_eval_reconstruction_batches=3, compute_kl=True, compute_ce_loss=True)
    groups, _ = run_evals(sae, store, tiny_pair().view("base"), ActivationScaler(), config, exclude_special_tokens=[0])
    assert set(groups["model_performance_preservation"]) == {
        "ce_loss_score",
        "ce_loss_with_ablation",
        "ce_loss_with_sae",
        "ce_loss_without_sae",
    }
    assert set(groups["model_behavior_preservation"]) == {"kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"}
    assert store.n_given == 3, "one batch after the other, and no other metric takes one"


def test_a_scaler_without_factors_changes_nothing():
    x = torch.randn(3, 4)
    assert torch.equal(ActivationScaler().scale(x), x)
    assert torch.equal(ActivationScaler().unscale(x), x)


# -------------------------------------------------------------------------------- trainer and runner


def test_the_trainer_has_the_seams_that_ours_uses():
    for name in (
        "step", "save_checkpoint", "load_trainer_state", "maybe_reset_sparsity", "full_sparsity_window_log",
        "set_final_sae_metadata", "build_train_step_log_dict", "_checkpoint_if_needed", "_run_and_log_evals",
        "_is_logging_step", "_train_step",
    ):  # fmt: skip
        assert callable(getattr(SAETrainer, name)), name
    assert parameters(SAETrainer.__init__)[:5] == ["self", "cfg", "sae", "data_provider", "evaluator"]
    assert parameters(SAETrainer.save_checkpoint)[:4] == ["self", "checkpoint_name", "base_path", "wandb_aliases"]


def test_the_trainer_saves_under_the_name_and_folder_it_is_given(tmp_path: Path):
    cfg = run_config(standard_config()).to_sae_trainer_config()
    trainer = SAETrainer(cfg, crosscoder(), iter(()))
    trainer.save_checkpoint("name", tmp_path / "base")
    assert (tmp_path / "base" / "name" / "trainer_state.pt").is_file()


def test_a_step_counts_samples_and_not_steps():
    trainer = SAETrainer(run_config(standard_config()).to_sae_trainer_config(), crosscoder(), iter(()))
    trainer.step(torch.randn(64, 32))
    assert (trainer.n_training_samples, trainer.n_training_steps) == (64, 0)


def test_the_runner_has_the_seams_that_ours_overrides():
    for name in ("run", "save_final_sae", "_set_sae_metadata", "_compile_llm_if_needed", "_compile_sae_if_needed"):
        assert callable(getattr(LanguageModelSAETrainingRunner, name)), name
    assert parameters(LanguageModelSAETrainingRunner.__init__)[1:5] == [
        "cfg",
        "override_dataset",
        "override_model",
        "override_sae",
    ]


def test_the_runner_configuration_appends_an_id_to_the_checkpoint_path(tmp_path: Path):
    sae = run_config(standard_config()).sae
    cfg = LanguageModelSAERunnerConfig(sae=sae, dataset_path="x", checkpoint_path=str(tmp_path))
    assert cfg.checkpoint_path != str(tmp_path)
    assert Path(cfg.checkpoint_path or "").parent == tmp_path


# -------------------------------------------------------------------------------------- SAE classes


def test_a_training_sae_is_saved_for_inference_through_the_two_seams_that_ours_overrides(tmp_path: Path):
    called: list[str] = []

    class Noting(type(crosscoder())):  # type: ignore[misc]
        def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
            called.append("state")
            super().process_state_dict_for_saving_inference(state_dict)

    sae = Noting(standard_config(source_widths=[16, 16], normalize_activations="none"))
    weights, cfg = sae.save_inference_model(tmp_path)
    assert called == ["state"]
    assert (Path(weights).name, Path(cfg).name) == ("sae_weights.safetensors", "cfg.json")
    assert type(SAE.load_from_disk(tmp_path)) is StandardSAE


def test_a_jumprelu_sae_fires_strictly_above_its_threshold():
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=1, d_sae=2, apply_b_dec_to_input=False))
    sae.W_enc.data, sae.b_enc.data = torch.ones(1, 2), torch.zeros(2)
    sae.threshold.data = torch.tensor([1.0, 2.0])
    assert sae.encode(torch.tensor([[1.0], [2.0], [3.0]])).tolist() == [[0.0, 0.0], [2.0, 0.0], [3.0, 3.0]]


def test_losses_of_a_step_are_summed_over_columns_and_averaged_over_tokens():
    from sae_lens.saes.sae import TrainStepInput

    sae = crosscoder()
    x = torch.randn(5, 32)
    output = sae.training_forward_pass(
        TrainStepInput(
            sae_in=x, coefficients={"l1": 0.0}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
        )
    )
    by_hand = (output.sae_out - x).pow(2).sum(dim=1).mean()
    torch.testing.assert_close(output.losses["mse_loss"], by_hand)


def test_loading_from_disk_casts_buffers_to_the_dtype_of_the_weights_and_loading_into_a_training_sae_does_not(
    tmp_path: Path,
):
    sae = crosscoder("batchtopk")
    sae.topk_threshold.fill_(1 / 3)
    sae.save_model(tmp_path)
    assert TrainingSAE.load_from_disk(tmp_path).topk_threshold.dtype == torch.float32
    again = crosscoder("batchtopk")
    again.load_weights_from_checkpoint(tmp_path)
    assert again.topk_threshold.item() == 1 / 3
