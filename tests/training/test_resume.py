from __future__ import annotations

import signal
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import (
    CONTEXT,
    batchtopk_config,
    run_config,
    standard_config,
    text_dataset,
    tiny_pair,
    tiny_tokenizer,
    token_dataset,
)

from sae_lens_crosscoder import CrosscoderTrainer, CrosscoderTrainingRunner, DatasetConfig, PairedActivationsStore
from sae_lens_crosscoder.activations import CacheRequest, write_cache
from sae_lens_crosscoder.errors import ConfigError, DamagedError, FinishedError, NotFoundError, TrainingInterrupted

pytestmark = pytest.mark.filterwarnings("ignore:The data set ended")

TEXT_MIXTURE: dict[str, Any] = {
    "dataset_path": "",
    "datasets": [DatasetConfig(label="words", weight=0.7), DatasetConfig(label="ids", weight=0.3)],
    "prepend_bos": True,
}


def interrupt_after(monkeypatch: pytest.MonkeyPatch, n_steps: int) -> None:
    step = CrosscoderTrainer.step

    def stopping(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
        if self.n_training_steps + 1 == n_steps:
            self.stop_requested = True
        return step(self, batch)

    monkeypatch.setattr(CrosscoderTrainer, "step", stopping)


def run(folder: Path, config: Any, data: Any, **fields: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    cfg = run_config(config(dtype="float64"), folder, dtype="float64", training_tokens=64 * 40, **fields)
    model = tiny_pair(dtype=torch.float64, tokenizer=tiny_tokenizer())
    sae = CrosscoderTrainingRunner(cfg, override_dataset=data, override_model=model).run()
    return {name: tensor.clone() for name, tensor in sae.state_dict().items()}


@pytest.mark.parametrize("n_prefetched", [0, 3])
@pytest.mark.parametrize("config", [standard_config, batchtopk_config], ids=["standard", "batchtopk"])
@pytest.mark.parametrize("mixture", [False, True], ids=["one data set", "mixture"])
def test_an_interrupted_and_resumed_run_equals_an_unbroken_one(
    float64: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: Any,
    mixture: bool,
    n_prefetched: int,
) -> None:
    data: Any = {"words": text_dataset(), "ids": token_dataset(120)} if mixture else token_dataset(90)
    fields = {**(TEXT_MIXTURE if mixture else {}), "prefetch_llm_batches": n_prefetched}
    unbroken = run(tmp_path / "unbroken", config, data, **fields)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 17)
        with pytest.raises(TrainingInterrupted, match="resume_from_checkpoint="):
            run(tmp_path / "broken", config, data, **fields)
    (checkpoint,) = (tmp_path / "broken").glob(f"checkpoints/*/{17 * 64}")
    resumed = run(tmp_path / "broken", config, data, resume_from_checkpoint=str(checkpoint), **fields)
    for name, tensor in unbroken.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=1e-12, msg=name)
    curves = [(tmp_path / name / "output" / "training_curve.csv").read_text() for name in ("unbroken", "broken")]
    assert curves[0] == curves[1]
    assert len(curves[0].splitlines()) == 41


@pytest.mark.parametrize("n_prefetched", [0, 2])
def test_so_does_a_run_on_a_cache_of_which_it_reads_two_epochs(
    float64: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_prefetched: int
) -> None:
    data, cache = token_dataset(90), tmp_path / "cache"
    cfg = run_config(batchtopk_config(dtype="float64"), dtype="float64")
    model = tiny_pair(dtype=torch.float64, tokenizer=tiny_tokenizer())
    store = PairedActivationsStore.from_config(model, cfg, data)
    write_cache(store, cache, CacheRequest(80 * CONTEXT, dtype="float64", shard_bytes=30_000))
    fields = {
        "prefetch_llm_batches": n_prefetched,
        "use_cached_activations": True,
        "cached_activations_path": str(cache),
    }
    unbroken = run(tmp_path / "unbroken", batchtopk_config, data, **fields)
    for n_steps in (5, 33):
        with monkeypatch.context() as patch:
            interrupt_after(patch, n_steps)
            with pytest.raises(TrainingInterrupted):
                run(tmp_path / f"broken{n_steps}", batchtopk_config, data, **fields)
        (checkpoint,) = (tmp_path / f"broken{n_steps}").glob(f"checkpoints/*/{n_steps * 64}")
        resumed = run(
            tmp_path / f"broken{n_steps}", batchtopk_config, data, resume_from_checkpoint=str(checkpoint), **fields
        )
        for name, tensor in unbroken.items():
            torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=1e-12, msg=name)


def test_a_run_that_ends_or_fails_leaves_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "harvest"]

    cfg = run_config(batchtopk_config(), tmp_path, prefetch_llm_batches=2)
    CrosscoderTrainingRunner(cfg, token_dataset(90), tiny_pair()).run()
    assert threads() == []

    def broken(*_: Any) -> None:
        raise MemoryError("of the models")

    again = run_config(batchtopk_config(), tmp_path / "again", prefetch_llm_batches=2)
    runner = CrosscoderTrainingRunner(again, token_dataset(90), tiny_pair())
    monkeypatch.setattr(PairedActivationsStore, "harvest", broken)
    with pytest.raises(MemoryError, match="of the models") as caught:
        runner.run()
    cause = caught.value.__cause__
    assert cause is not None
    assert "broken" in [frame.name for frame in traceback.extract_tb(cause.__traceback__)]
    assert threads() == []


def test_harvesting_pauses_while_a_checkpoint_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harvest, save = PairedActivationsStore.harvest, PairedActivationsStore.save
    n_inside = [0]
    seen: list[int] = []

    def slow(self: PairedActivationsStore, tokens: torch.Tensor) -> list[torch.Tensor]:
        n_inside[0] += 1
        time.sleep(0.01)
        activations = harvest(self, tokens)
        n_inside[0] -= 1
        return activations

    def watching(self: PairedActivationsStore, file_path: str) -> None:
        n_read = self.n_dataset_processed
        for _ in range(20):
            seen.append(n_inside[0] + self.n_dataset_processed - n_read)
            time.sleep(0.005)
        save(self, file_path)

    monkeypatch.setattr(PairedActivationsStore, "harvest", slow)
    monkeypatch.setattr(PairedActivationsStore, "save", watching)
    cfg = run_config(batchtopk_config(), tmp_path, prefetch_llm_batches=200, n_checkpoints=1)
    CrosscoderTrainingRunner(cfg, token_dataset(90), tiny_pair()).run()
    assert seen == [0] * 20


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_resumed_run_sees_exactly_the_tokens_of_an_unbroken_one(
    float64: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    step = CrosscoderTrainer.step

    def recording(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
        seen.extend(batch[:, 0].tolist())
        return step(self, batch)

    monkeypatch.setattr(CrosscoderTrainer, "step", recording)
    data = token_dataset(400)
    run(tmp_path / "unbroken", batchtopk_config, data)
    of_unbroken = sorted(seen)
    seen.clear()
    with monkeypatch.context() as patch:
        interrupt_after(patch, 20)
        with pytest.raises(TrainingInterrupted):
            run(tmp_path, batchtopk_config, data)
    (checkpoint,) = tmp_path.glob(f"checkpoints/*/{20 * 64}")
    run(tmp_path, batchtopk_config, data, resume_from_checkpoint=str(checkpoint))
    assert len(of_unbroken) == 40 * 64
    assert sorted(seen) == of_unbroken


def test_a_missing_checkpoint_is_named_before_any_model_is_loaded(tmp_path: Path) -> None:
    cfg = run_config(standard_config(), tmp_path, resume_from_checkpoint=str(tmp_path / "gone"))
    with pytest.raises(NotFoundError, match=r"There is no checkpoint at .*gone"):
        CrosscoderTrainingRunner(cfg)


def test_resuming_a_finished_run_says_that_it_is_finished(tmp_path: Path) -> None:
    cfg = run_config(standard_config(), tmp_path, save_final_checkpoint=True)
    data: Dataset = token_dataset()
    CrosscoderTrainingRunner(cfg, data, tiny_pair()).run()
    (checkpoint,) = tmp_path.glob("checkpoints/*/final_*")
    for fields in ({}, {"resume_from_checkpoint": "auto"}, {"resume_from_checkpoint": str(checkpoint)}):
        again = run_config(standard_config(), tmp_path, **fields)
        with pytest.raises(FinishedError, match=r"is finished: .* Raise training_tokens"):
            CrosscoderTrainingRunner(again, data, tiny_pair())
    again = run_config(standard_config(), tmp_path / "other", resume_from_checkpoint=str(checkpoint))
    with pytest.raises(FinishedError, match=r"is finished. Raise training_tokens"):
        CrosscoderTrainingRunner(again, data, tiny_pair()).run()


def test_a_crosscoder_is_replaced_only_when_asked_to(tmp_path: Path) -> None:
    CrosscoderTrainingRunner(run_config(standard_config(), tmp_path), token_dataset(), tiny_pair()).run()
    before = (tmp_path / "output" / "sae_weights.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"holds a crosscoder of another run, which would be replaced"):
        CrosscoderTrainingRunner(run_config(standard_config(), tmp_path, lr=1e-2), token_dataset(), tiny_pair())
    assert (tmp_path / "output" / "sae_weights.safetensors").read_bytes() == before
    cfg = run_config(standard_config(), tmp_path, lr=1e-2, overwrite_output=True)
    CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair()).run()
    assert (tmp_path / "output" / "sae_weights.safetensors").read_bytes() != before


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    cfg = run_config(standard_config(), tmp_path, n_checkpoints=4, n_kept_checkpoints=2, save_final_checkpoint=True)
    CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair()).run()
    assert sorted(p.name for p in tmp_path.glob("checkpoints/*/*")) == ["512", "640", "final_768"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("trainer_state.pt", lambda path: path.write_bytes(path.read_bytes()[:-7])),
        ("sae_weights.safetensors", lambda path: flip_a_bit(path)),
        ("activations_store_state.safetensors", lambda path: path.unlink()),
        ("manifest.json", lambda path: path.unlink()),
        ("manifest.json", lambda path: path.write_text("[]")),
    ],
    ids=["cut off", "one bit", "missing", "no manifest", "other manifest"],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str, damage: Any
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, 10)
        cfg = run_config(standard_config(), tmp_path, n_checkpoints=4)
        with pytest.raises(TrainingInterrupted):
            CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair()).run()
    newest, before = (next(tmp_path.glob(f"checkpoints/*/{n}")) for n in (640, 512))
    damage(newest / name)
    cfg = run_config(standard_config(), tmp_path, resume_from_checkpoint=str(newest))
    with pytest.raises((DamagedError, NotFoundError), match=r"checkpoint|Resume from an earlier"):
        CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair())
    cfg = run_config(standard_config(), tmp_path, resume_from_checkpoint="auto")
    CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair())
    assert cfg.resume_from_checkpoint == str(before)
    assert str(newest) in caplog.text


def test_resuming_automatically_begins_anew_where_there_is_no_checkpoint_of_the_configuration(tmp_path: Path) -> None:
    cfg = run_config(standard_config(), tmp_path / "a", n_checkpoints=2)
    CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair()).run()
    other = run_config(
        standard_config(), tmp_path / "a", lr=5e-4, resume_from_checkpoint="auto", output_path=str(tmp_path / "b")
    )
    CrosscoderTrainingRunner(other, token_dataset(), tiny_pair())
    assert other.resume_from_checkpoint is None
    with pytest.raises(ConfigError, match="looks below checkpoint_path, which is not set"):
        CrosscoderTrainingRunner(run_config(standard_config(), resume_from_checkpoint="auto"))


def short_run(folder: Path, **fields: Any) -> None:
    CrosscoderTrainingRunner(run_config(standard_config(), folder, **fields), token_dataset(), tiny_pair()).run()


def test_what_is_kept_beside_a_damaged_checkpoint_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields: dict[str, Any] = {"n_checkpoints": 5, "n_kept_checkpoints": 2, "resume_from_checkpoint": "auto"}
    with monkeypatch.context() as patch:
        interrupt_after(patch, 11)
        with pytest.raises(TrainingInterrupted):
            CrosscoderTrainingRunner(
                run_config(standard_config(), tmp_path, **fields), token_dataset(), tiny_pair()
            ).run()
    newest, before = (next(tmp_path.glob(f"checkpoints/*/{64 * n}")) for n in (11, 9))
    flip_a_bit(newest / "sae_weights.safetensors")
    fields["n_kept_checkpoints"] = 1
    with monkeypatch.context() as patch:
        interrupt_after(patch, 10)
        with pytest.raises(TrainingInterrupted):
            CrosscoderTrainingRunner(
                run_config(standard_config(), tmp_path, **fields), token_dataset(), tiny_pair()
            ).run()
    assert sorted(path.name for path in before.parent.iterdir()) == ["640", "704"]
    cfg = run_config(standard_config(), tmp_path, **fields)
    CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair())
    assert cfg.resume_from_checkpoint == str(before.parent / "640")


def test_resuming_leaves_what_another_run_is_writing(tmp_path: Path) -> None:
    for name, lr in (("one", 1e-3), ("other", 2e-3)):
        cfg = run_config(standard_config(), tmp_path, lr=lr, n_checkpoints=1, output_path=str(tmp_path / name))
        CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair()).run()
        being_written = Path(str(cfg.checkpoint_path)) / ".832-abcd1234.tmp"
        being_written.mkdir()
    cfg = run_config(
        standard_config(), tmp_path, lr=1e-3, resume_from_checkpoint="auto", output_path=str(tmp_path / "third")
    )
    CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair())
    assert list(tmp_path.glob("checkpoints/*/.*.tmp")) == [being_written]


def test_a_run_that_was_killed_before_its_result_was_saved_can_be_ended(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"n_checkpoints": 12, "resume_from_checkpoint": "auto"}
    short_run(tmp_path, **fields)
    assert len(list(tmp_path.glob("checkpoints/*/*"))) == 11
    expected = (tmp_path / "output" / "training_curve.csv").read_text()
    (tmp_path / "output" / "cfg.json").unlink()
    short_run(tmp_path, **fields)
    assert (tmp_path / "output" / "cfg.json").is_file()
    assert (tmp_path / "output" / "training_curve.csv").read_text() == expected


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)])
def test_a_signal_that_a_launcher_passes_on_as_well_is_one_wish_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: tuple[int, int]
) -> None:
    step = CrosscoderTrainer.step

    def signalled(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
        if self.n_training_steps == 4:
            for number in numbers:
                signal.raise_signal(number)
        return step(self, batch)

    monkeypatch.setattr(CrosscoderTrainer, "step", signalled)
    with pytest.raises(TrainingInterrupted) as interrupted:
        short_run(tmp_path)
    assert interrupted.value.checkpoint is not None


def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = CrosscoderTrainer.step

    def signalled(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
        signal.raise_signal(signal.SIGINT)
        return step(self, batch)

    monkeypatch.setattr(CrosscoderTrainer, "step", signalled)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        short_run(tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "output" / "cfg.json").is_file()


def test_a_handler_that_was_set_outside_python_stays_set(monkeypatch: pytest.MonkeyPatch) -> None:
    set_here: list[int] = []
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else signal.SIG_DFL)
    monkeypatch.setattr(signal, "signal", lambda number, _handler: set_here.append(number))
    cfg = run_config(batchtopk_config(), training_tokens=64, n_eval_batches=0)
    CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair()).run()
    assert set_here == [signal.SIGINT, signal.SIGINT]


def test_a_second_signal_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = CrosscoderTrainer.step

    def signalled(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.02)
        signal.raise_signal(signal.SIGINT)
        return step(self, batch)

    monkeypatch.setattr("sae_lens_crosscoder.training.signals.AT_ONCE_AFTER_SECONDS", 0.01)
    monkeypatch.setattr(CrosscoderTrainer, "step", signalled)
    with pytest.raises(KeyboardInterrupt):
        short_run(tmp_path)
