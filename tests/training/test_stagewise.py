"""Going on from a parent: the stages of stage-wise model diffing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    batchtopk_config,
    crosscoder,
    run_config,
    source,
    standard_config,
    tiny_model,
    tiny_pair,
    token_dataset,
)
from sae_lens import SAE, StandardTrainingSAEConfig, TrainingSAE
from safetensors.torch import load_file, save_file

from sae_lens_crosscoder import (
    CrosscoderTrainer,
    CrosscoderTrainingRunner,
    GatedTrainingCrosscoderConfig,
    JointModel,
    JumpReLUTrainingCrosscoderConfig,
    MatryoshkaBatchTopKTrainingCrosscoderConfig,
    Sources,
    TopKTrainingCrosscoderConfig,
)
from sae_lens_crosscoder.activations import SourceScaler
from sae_lens_crosscoder.errors import ConfigError, DataError, NotFoundError, TrainingInterrupted
from sae_lens_crosscoder.training.parent import load_parent

pytestmark = pytest.mark.filterwarnings("ignore:The data set ended")

ARCHITECTURES: dict[str, Any] = {
    "standard": lambda: standard_config(b_dec_init="geometric_median"),
    "batchtopk": lambda: batchtopk_config(b_dec_init="geometric_median"),
    "topk": lambda: TopKTrainingCrosscoderConfig(d_in=32, d_sae=32, k=4),
    "matryoshka": lambda: MatryoshkaBatchTopKTrainingCrosscoderConfig(d_in=32, d_sae=32, k=4),
    "jumprelu": lambda: JumpReLUTrainingCrosscoderConfig(d_in=32, d_sae=32),
    "gated": lambda: GatedTrainingCrosscoderConfig(d_in=32, d_sae=32),
}


def train(cfg: Any, seed: int = 0) -> TrainingSAE[Any]:
    torch.manual_seed(seed)
    return CrosscoderTrainingRunner(cfg, token_dataset(400), stage_models()).run()


def stage_models(labels: tuple[str, str] = ("base", "chat")) -> JointModel:
    return JointModel(Sources(tuple(map(source, labels))), [tiny_model(0), tiny_model(1)])


def trained(folder: Path, config: Any, **fields: Any) -> tuple[Path, Path]:
    """A finished run with its final checkpoint."""
    train(run_config(config, folder, save_final_checkpoint=True, **fields))
    (final,) = folder.glob("checkpoints/*/final_*")
    return final, folder / "output"


def first_loss(cfg: Any, monkeypatch: pytest.MonkeyPatch) -> float:
    """The loss of the first step, on the same batch for every run of one configuration."""
    losses: list[float] = []
    step = CrosscoderTrainer.step

    def recording(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
        output = step(self, batch)
        losses.append(output.loss.item())
        return output

    with monkeypatch.context() as patch:
        patch.setattr(CrosscoderTrainer, "step", recording)
        train(cfg)
    return losses[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_goes_on_alike_from_a_checkpoint_and_from_what_a_finished_run_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    config = ARCHITECTURES[architecture]
    checkpoint, finished = trained(tmp_path / "parent", config())
    exact, unfolded = load_parent(str(checkpoint)), load_parent(str(finished))
    for name, tensor in exact.sae.state_dict().items():
        torch.testing.assert_close(unfolded.sae.state_dict()[name], tensor, rtol=1e-6, atol=1e-6, msg=name)
    assert unfolded.scales == exact.scales
    assert isinstance(exact.scales, list)
    assert 1.0 not in exact.scales
    losses = [
        first_loss(run_config(config(), from_pretrained_path=str(path)), monkeypatch) for path in (checkpoint, finished)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_weights_that_write_nothing_come_back(tmp_path: Path) -> None:
    sae = crosscoder("batchtopk", normalize_activations="none")
    sae.W_dec.data[3] = 0
    for name, value in (("topk_threshold", 0.5), ("topk_threshold_weight", 0.25)):
        setattr(sae, name, torch.tensor([value], dtype=torch.float64))
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    sae.fold_activation_norm_scaling_factor([0.5, 3.0])
    sae.save_inference_model(tmp_path)
    again = crosscoder("batchtopk")
    again.load_inference_state_dict(SAE.load_from_disk(tmp_path).state_dict(), sae.left_out_of_inference(), [0.5, 3.0])
    for name, tensor in before.items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("config", [batchtopk_config, ARCHITECTURES["jumprelu"]], ids=["batchtopk", "jumprelu"])
def test_the_parents_scales_and_weights_are_taken_and_nothing_starts_from_data_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Any
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    checkpoint, finished = trained(tmp_path / "parent", config())
    scales = json.loads((checkpoint / "activation_scaler.json").read_text())["scaling_factor"]
    monkeypatch.setattr(SourceScaler, "estimate_scaling_factor", never)
    monkeypatch.setattr("sae_lens_crosscoder.training.crosscoder.TrainingCrosscoder.initialize_from_data", never)
    # Other models and labels: their own scales would differ.
    labels = ("first", "second")
    cfg = run_config(
        config(),
        tmp_path / "child",
        from_pretrained_path=str(finished),
        sources=list(map(source, labels)),
        lr=1e-12,
    )
    joint = JointModel(cfg.joint_sources, [tiny_model(5), tiny_model(6)])
    CrosscoderTrainingRunner(cfg, token_dataset(400), joint).run()
    saved = SAE.load_from_disk(tmp_path / "child" / "output")
    sources = Sources.from_metadata(saved.cfg.metadata)
    assert sources.labels == list(labels)
    assert sources.activation_scales == scales
    parent = SAE.load_from_disk(finished)
    torch.testing.assert_close(saved.W_dec, parent.W_dec, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(saved.b_dec, parent.b_dec, rtol=1e-5, atol=1e-5)


def test_scales_are_estimated_anew_if_asked(tmp_path: Path) -> None:
    checkpoint, _ = trained(tmp_path / "parent", standard_config())
    sources = [source("first"), source("second")]
    cfg = run_config(
        standard_config(), from_pretrained_path=str(checkpoint), sources=sources, reuse_parent_scales=False
    )
    joint = JointModel(cfg.joint_sources, [tiny_model(5), tiny_model(6)])
    with torch.no_grad():
        joint.source_models[0].W_E.mul_(3)
    runner = CrosscoderTrainingRunner(cfg, token_dataset(400), joint)
    sae = runner.run()
    parent = json.loads((checkpoint / "activation_scaler.json").read_text())["scaling_factor"]
    assert sae.source_scales[0] < 0.9 * parent[0]
    assert runner.activations_store.n_batches_served == 12 + 2


def test_the_threshold_goes_on_from_the_parents(tmp_path: Path) -> None:
    checkpoint, finished = trained(tmp_path / "parent", batchtopk_config())
    state = load_file(checkpoint / "sae_weights.safetensors")
    cfg = run_config(
        batchtopk_config(), from_pretrained_path=str(finished), lr=1e-12, training_tokens=64, n_eval_batches=0
    )
    sae = train(cfg)
    weight = state["topk_threshold_weight"].item()
    assert weight == pytest.approx(1 - 0.99**12)
    assert sae.topk_threshold_weight.item() == pytest.approx(1 - 0.99**13)
    # One more step moves the average by about a twelfth of what it says, not to the step's own value.
    assert sae.topk_threshold.item() == pytest.approx(state["topk_threshold"].item(), rel=0.1)


def test_parent_and_stages_stand_in_the_metadata_of_what_is_saved(tmp_path: Path) -> None:
    _, first = trained(tmp_path / "S", standard_config(), stage="S")
    checkpoint, second = trained(tmp_path / "D", standard_config(), stage="D", from_pretrained_path=str(first))
    train(run_config(standard_config(), tmp_path / "DF", stage="DF", from_pretrained_path=str(checkpoint)))
    train(run_config(standard_config(), tmp_path / "unnamed", from_pretrained_path=str(second)))
    metadata = {
        stage: SAE.load_from_disk(tmp_path / stage / "output").cfg.metadata for stage in ("S", "D", "DF", "unnamed")
    }
    assert "parent" not in metadata["S"]
    assert {stage: kept.stage for stage, kept in metadata.items()} == {"S": "S", "D": "D", "DF": "DF", "unnamed": None}
    assert metadata["D"].parent == str(first)
    assert metadata["D"].parent_stages == ["S"]
    assert metadata["DF"].parent == str(checkpoint)
    assert metadata["DF"].parent_stages == metadata["unnamed"].parent_stages == ["S", "D"]


def test_a_penalty_that_is_in_force_does_not_rise_again_and_k_is_not_annealed_twice(tmp_path: Path) -> None:
    jumprelu = ARCHITECTURES["jumprelu"]
    _, finished = trained(tmp_path / "l0", jumprelu())
    assert run_config(jumprelu()).sae.l0_warm_up_steps == 12
    runner = CrosscoderTrainingRunner(
        run_config(jumprelu(), from_pretrained_path=str(finished)), token_dataset(), tiny_pair()
    )
    assert runner.sae.cfg.l0_warm_up_steps == runner.cfg.sae.l0_warm_up_steps == 0
    _, finished = trained(tmp_path / "l1", standard_config(l1_warm_up_steps=6))
    asked = run_config(standard_config(l1_warm_up_steps=3), from_pretrained_path=str(finished))
    assert CrosscoderTrainingRunner(asked, token_dataset(), tiny_pair()).sae.cfg.l1_warm_up_steps == 3
    _, finished = trained(tmp_path / "topk", batchtopk_config(k_start=16.0, k_annealing_steps=4))
    runner = CrosscoderTrainingRunner(
        run_config(batchtopk_config(), from_pretrained_path=str(finished)), token_dataset(), tiny_pair()
    )
    assert runner.sae.cfg.k_at(0) == 4


def test_a_stage_is_resumed_from_its_own_checkpoint_without_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, finished = trained(tmp_path / "parent", batchtopk_config(), stage="S")
    fields: dict[str, Any] = {"from_pretrained_path": str(finished), "stage": "D"}
    unbroken = train(run_config(batchtopk_config(), tmp_path / "unbroken", **fields))
    step = CrosscoderTrainer.step

    def stopping(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
        self.stop_requested = self.n_training_steps + 1 == 5
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(CrosscoderTrainer, "step", stopping)
        with pytest.raises(TrainingInterrupted):
            train(run_config(batchtopk_config(), tmp_path / "broken", **fields))
    shutil.rmtree(finished)
    (checkpoint,) = tmp_path.glob("broken/checkpoints/*/320")
    fields["resume_from_checkpoint"] = str(checkpoint)
    resumed = train(run_config(batchtopk_config(), tmp_path / "broken", **fields))
    for name, tensor in unbroken.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    metadata = SAE.load_from_disk(tmp_path / "broken" / "output").cfg.metadata
    assert (metadata.parent, metadata.parent_stages, metadata.stage) == (str(finished), ["S"], "D")


@pytest.mark.parametrize("of", ["checkpoint", "finished run"])
def test_a_parent_of_another_shape_is_refused_naming_both_sides(tmp_path: Path, of: str) -> None:
    checkpoint, finished = trained(tmp_path / "parent", batchtopk_config())
    path = str(checkpoint if of == "checkpoint" else finished)
    three = [source(f"h{i}", f"blocks.{i}.hook_resid_pre") for i in (0, 1, 2)]
    widths = [source("base"), source("chat", d_in=24)]
    split = [source("h0", d_in=8), source("h1", d_in=8), source("base")]
    for config, sources, message in (
        (batchtopk_config(d_sae=64), None, r"d_sae=32, the configuration says 64"),
        (standard_config(), None, r"'batchtopk_crosscoder', the configuration says 'standard_crosscoder'"),
        (batchtopk_config(d_in=48), three, r"d_in=32, the configuration says 48"),
        (batchtopk_config(d_in=40), widths, r"d_in=32, the configuration says 40"),
        (batchtopk_config(), split, r"source_widths=\[16, 16\], the configuration says \[8, 8, 16\]"),
    ):
        fields = {} if sources is None else {"sources": sources}
        cfg = run_config(config, from_pretrained_path=path, **fields)
        model = stage_models() if sources is None else None
        if sources is not None:
            joint_sources = cfg.joint_sources
            models = [tiny_model(d_model=s.d_in) for s in joint_sources]
            model = JointModel(joint_sources, models)
        with pytest.raises(ConfigError, match=message):
            CrosscoderTrainingRunner(cfg, token_dataset(), model)


def test_a_finished_run_whose_files_do_not_fit_or_are_of_an_older_version_is_named(tmp_path: Path) -> None:
    _, finished = trained(tmp_path / "parent", batchtopk_config())
    path = finished / "sparsity.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "canonical_norms": torch.ones(5)}, path)
    with pytest.raises(DataError, match="do not fit together"):
        load_parent(str(finished))
    save_file({name: tensors[name] for name in ("sparsity", "dead_latents")}, path)
    with pytest.raises((NotFoundError, ConfigError), match=r"canonical_norms|architecture='jumprelu'"):
        CrosscoderTrainingRunner(
            run_config(batchtopk_config(), from_pretrained_path=str(finished)), token_dataset(), tiny_pair()
        )


def test_scales_do_not_compound_when_sources_are_read_from_a_trained_crosscoder(tmp_path: Path) -> None:
    _, finished = trained(tmp_path / "parent", batchtopk_config())
    first = SAE.load_from_disk(finished)
    read = Sources.from_metadata(first.cfg.metadata)
    assert read.activation_scales != [1.0, 1.0]
    cfg = run_config(
        batchtopk_config(), tmp_path / "child", sources=list(read), from_pretrained_path=str(finished), lr=1e-12
    )
    model = JointModel(read, [tiny_model(0), tiny_model(1)])
    CrosscoderTrainingRunner(cfg, token_dataset(400), model).run()
    second = SAE.load_from_disk(tmp_path / "child" / "output")
    scales = Sources.from_metadata(second.cfg.metadata).activation_scales
    assert scales == pytest.approx(read.activation_scales)
    torch.testing.assert_close(second.W_dec, first.W_dec, rtol=1e-4, atol=1e-5)


def test_a_finished_stock_sae_is_no_parent(tmp_path: Path) -> None:
    cfg = run_config(StandardTrainingSAEConfig(d_in=16, d_sae=24), tmp_path, combine="difference")
    CrosscoderTrainingRunner(cfg, token_dataset(400), tiny_pair(combine="difference")).run()
    again = run_config(
        StandardTrainingSAEConfig(d_in=16, d_sae=24),
        tmp_path / "again",
        combine="difference",
        from_pretrained_path=str(tmp_path / "output"),
    )
    with pytest.raises(NotFoundError, match="holds a finished SAE without the canonical_norms"):
        CrosscoderTrainingRunner(again, token_dataset(400), tiny_pair(combine="difference"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 9.0}, r"sae.k=9.0 would have no effect: the crosscoder to go on from has 4.0"),
        ({"n_shared_latents": 8}, "sae.n_shared_latents=8 would have no effect"),
        ({"k_start": 40.0, "k_annealing_steps": 5}, "k_start=40.0 must be positive and at most"),
    ],
)
def test_fields_that_a_parent_keeps_are_refused_and_its_schedule_is_checked(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    checkpoint, _ = trained(tmp_path / "parent", batchtopk_config())

    def go_on() -> None:
        cfg = run_config(batchtopk_config(**fields), tmp_path / "child", from_pretrained_path=str(checkpoint))
        CrosscoderTrainingRunner(cfg, token_dataset(400), tiny_pair())

    with pytest.raises(ConfigError, match=message):
        go_on()
