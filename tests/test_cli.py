from __future__ import annotations

import csv
import json
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from dashboard_subjects import needs_sae_dashboard
from helpers import CONTEXT, text_dataset, tiny_tokenizer
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from sae_lens_crosscoder import cli
from sae_lens_crosscoder.cli import diff as diff_command
from sae_lens_crosscoder.cli.parser import parse_fields
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.training.saved_run import SavedRun


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny Hugging Face models and a data set, on disk."""
    folder = tmp_path_factory.mktemp("models")
    for seed, label in enumerate(("base", "chat")):
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=300, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=2, bos_token_id=0)
        GPT2LMHeadModel(config).save_pretrained(folder / label)
        tiny_tokenizer().save_pretrained(str(folder / label))
    text_dataset().save_to_disk(str(folder / "data"))
    return folder


def data(models: Path) -> str:
    return json.dumps([{"path": str(models / "data"), "label": "words"}])


def train_arguments(models: Path, out: Path) -> list[str]:
    sources = [
        f"--source=label={label},model_name={models / label},hook_name=transformer.h.0,d_in=16,"
        "model_class_name=AutoModelForCausalLM"
        for label in ("base", "chat")
    ]
    return [
        "train",
        *sources,
        *("--dataset", f"path={models / 'data'},label=words"),
        *("--sae.architecture", "batchtopk_crosscoder", "--sae.d_in", "32", "--sae.d_sae", "24", "--sae.k", "4"),
        *("--context_size", str(CONTEXT), "--training_tokens", "640", "--train_batch_size_tokens", "64"),
        *("--n_batches_in_buffer", "16", "--n_batches_for_norm_estimate", "2", "--n_eval_batches", "1", "--lr", "1e-3"),
        *("--output_path", str(out), "--checkpoint_path", "None", "--logger.log_to_wandb", "false"),
    ]


@pytest.mark.parametrize("flag", ["--resume", "--resume_from_checkpoint"])
def test_a_finished_run_that_is_started_again_to_go_on_evaluates_if_it_has_not_and_ends_well(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    out = tmp_path / "crosscoder"
    assert cli.main(train_arguments(models, out)) == 0
    metrics = (out / "metrics.json").read_text()
    (out / "metrics.json").unlink()
    assert cli.main([*train_arguments(models, out), flag, "auto"]) == 0
    assert "finished but for its evaluation" in capsys.readouterr().out
    assert (out / "metrics.json").read_text() == metrics
    assert cli.main([*train_arguments(models, out), flag, "auto"]) == 0
    assert cli.main(train_arguments(models, out)) == cli.EXIT_BAD_INPUT


def test_a_crosscoder_trained_on_divided_documents_is_measured_on_what_each_part_held_out(
    models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "crosscoder"
    assert cli.main([*train_arguments(models, out), "--n_data_shards", "2"]) == 0
    trained = json.loads((out / "metrics.json").read_text())
    assert cli.main(["eval", str(out)]) == 0
    again = json.loads((out / "evaluation.json").read_text())
    assert again["l0"] == trained["l0"]
    assert again["sources"]["chat"] == pytest.approx(trained["sources"]["chat"], rel=1e-5)


def test_a_crosscoder_is_trained_measured_diffed_and_steered_from_the_command_line(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "crosscoder"
    assert cli.main(train_arguments(models, out)) == 0
    trained = json.loads((out / "metrics.json").read_text())
    assert cli.main(["eval", str(out), "--out", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["l0"] == trained["l0"]
    assert again["sources"]["chat"] == pytest.approx(trained["sources"]["chat"], rel=1e-5)
    for flags in (
        ["--decoder-only", "--finetuned", "base"],
        ["--budget-tokens", "640", "--kl-budget-tokens", "320", "--causal-budget-tokens=64"],
    ):
        folder = tmp_path / f"diff{len(flags)}"
        assert cli.main(["diff", str(out), "--out", str(folder), "--exclusive-above", "0.8", *flags]) == 0
        printed = capsys.readouterr().out
        assert "base-only" in printed
        assert "> 0.8" in printed
        with (folder / "latents.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 24
        assert {"report.html", "decoder.png"} <= {path.name for path in folder.iterdir()}
    assert "kl_attribution" in rows[0]
    if find_spec("sae_dashboard") is None:
        return
    chosen = ["--top", "3", "--by", "kl_attribution", "--diff", str(folder), "--budget-tokens", "640"]
    assert cli.main(["dashboard", str(out), *chosen, "--n-latents-per-page", "2", "--datasets", data(models)]) == 0
    pages = out / "dashboards"
    assert str(pages / "index.html") in capsys.readouterr().out
    assert {path.name for path in pages.iterdir()} == {
        "dashboards.json",
        "index.html",
        "latents-0.html",
        "latents-1.html",
    }
    best = sorted(rows, key=lambda row: -float(row["kl_attribution"]))[:3]
    listed = json.loads((pages / "dashboards.json").read_text())["chunks"].values()
    assert [j for chunk in listed for j in chunk["latents"]] == [int(row["latent"]) for row in best]

    strongest = int(best[0]["latent"])
    monkeypatch.setattr(SavedRun, "dead", torch.arange(24) == strongest)
    for flags, is_left_out in ((chosen, True), (["--latents", str(strongest), *chosen[4:]], False)):
        assert cli.main(["dashboard", str(out), *flags, "--datasets", data(models)]) == 0
        assert ("dead latents" in capsys.readouterr().out) == is_left_out
        (listed,) = json.loads((pages / "dashboards.json").read_text())["chunks"].values()
        assert (strongest in listed["latents"]) != is_left_out

    steer = ["steer", str(out), "--prompt", "the owl flies", "--max-new-tokens", "4"]
    assert cli.main([*steer, "--add", "3=1e3", "--remove", "5"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-5] == "the owl flies"
    said = dict(line.strip().split(": ", 1) for line in printed[-4:])
    assert list(said) == ["base, as it is", "base, steered", "chat, as it is", "chat, steered"]
    assert said["chat, as it is"] != said["chat, steered"]
    assert cli.main([*steer, "--remove", "24"]) == cli.EXIT_BAD_INPUT
    assert "There is no latent 24" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*steer, "--add", "3"])
    assert "'3' is not LATENT=ACTIVATION" in capsys.readouterr().err


def test_flags_win_over_the_configuration_file(models: Path, tmp_path: Path) -> None:
    arguments = train_arguments(models, tmp_path / "out")
    config = tmp_path / "run.yaml"
    config.write_text("training_tokens: 128\nsae: {architecture: batchtopk_crosscoder, d_in: 32, d_sae: 8, k: 2}\n")
    cli.main(["train", str(config), *arguments[1:]])
    saved = json.loads((tmp_path / "out" / "runner_cfg.json").read_text())
    assert (saved["training_tokens"], saved["sae"]["d_sae"]) == (640, 24)


def test_a_crosscoder_trained_on_a_cache_is_the_one_trained_on_the_models(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, *arguments = train_arguments(models, tmp_path / "live")
    cache = tmp_path / "cache"
    for rank in ("0", "1"):
        flags = ["--out", str(cache), "--tokens", "2400", "--dtype", "float32", "--rank", rank, "--world-size", "2"]
        assert cli.main(["cache", *arguments, *flags]) == 0
    assert "writer 1 of 2: up to 150 sequences in 1 shards" in capsys.readouterr().out
    reads = ["--use_cached_activations", "true", "--cached_activations_path", str(cache)]
    for seed, flags in enumerate((arguments, [*train_arguments(models, tmp_path / "cached")[1:], *reads])):
        torch.manual_seed(seed)  # as two processes begin: the run's own seed decides
        assert cli.main(["train", *flags]) == 0
    live, cached = (load_file(tmp_path / name / "sae_weights.safetensors") for name in ("live", "cached"))
    assert all(torch.equal(live[name], cached[name]) for name in live)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "It is not said where the cache is to be. Give --out DIR."),
        (["--out", "x", "--rank", "3"], "rank=3 is none of 1 writers"),
        (["--out", "x", "--dtype", "int8"], "dtype='int8' is unknown. Use one of float32"),
    ],
)
def test_a_cache_that_cannot_be_made_is_refused_before_any_model_is_loaded(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    arguments = [argument.replace(str(models), "/nowhere") for argument in train_arguments(models, tmp_path)]
    assert cli.main(["cache", *arguments[1:], *flags]) == cli.EXIT_BAD_INPUT
    assert message in capsys.readouterr().err


def test_a_diff_that_is_stopped_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(diff_command, "_diff", stopped)
    assert cli.main(["diff", "folder"]) == cli.EXIT_STOPPED
    assert "when you call it again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["diff", "nowhere"], "There is no crosscoder at nowhere"),
        (["dashboard", "nowhere"], "Which latents?"),
        (["dashboard", "nowhere", "--top", "3", "--latents", "1"], "Which latents?"),
        pytest.param(
            ["dashboard", "nowhere", "--top", "3", "--diff", "nothing"],
            "There is no latents.parquet in nothing: run `diff",
            marks=needs_sae_dashboard,
        ),
        (["eval", "nowhere"], "There is no crosscoder at nowhere"),
        (["train", "nowhere.yaml"], "There is no configuration file at nowhere.yaml"),
        (["tran", "run.yaml"], "There is no command 'tran'. Did you mean `train`?"),
        (["compare"], "There is no command 'compare'. sae-lens-crosscoder --help lists those that there are."),
        (
            ["diff", "nowhere", "--bugdet-tokens", "9"],
            "`diff` has no flag --bugdet-tokens. Did you mean --budget-tokens?",
        ),
        (["demo", "--device", "coda"], "device='coda' is no device. Use 'cpu', 'cuda', 'cuda:1' or 'mps'."),
        (["train", "--lr"], "--lr has no value"),
        (["train", "--dataset", "path"], "'path' is no field=value"),
        (["train", "--lr", "1"], "needs `sae` with its `architecture`"),
        (["train", "--sae.architecture", "nothing"], "Architecture 'nothing' is not registered"),
        (["fields", "nothing"], "Architecture 'nothing' is not registered"),
    ],
)
def test_bad_input_ends_with_code_2_and_one_clear_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == cli.EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1


def test_a_model_folder_that_is_not_seen_from_here_is_said_to_be_one(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [word.replace(str(models), "out/demo/pair") for word in train_arguments(models, tmp_path / "out")]
    assert cli.main(arguments) == cli.EXIT_BAD_INPUT
    assert f"there is no such folder in {tmp_path}, which the path is read from" in capsys.readouterr().err


def test_the_bare_program_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([])
    assert exit_.value.code == 0
    assert "show what differs between the models" in capsys.readouterr().out


def test_fields_that_are_written_with_hyphens_are_fields() -> None:
    _, commands = cli.parsers()
    for flag in ("--training-tokens", "--n-eval-batches", "--context-size"):
        assert cli.split_fields(["cache", flag, "1"], commands)[1] == [flag, "1"]


def test_flags_of_a_command_that_are_written_with_underscores_are_its_flags() -> None:
    _, commands = cli.parsers()
    arguments = ["diff", "a_b", "--budget_tokens", "5", "--kl_budget_tokens=6", "--causal-budget-tokens", "7"]
    own = ["diff", "a_b", "--budget-tokens", "5", "--kl-budget-tokens=6", "--causal-budget-tokens", "7"]
    assert cli.split_fields(arguments, commands) == (own, [])
    assert cli.split_fields(["train", "--skip_bad_shards", "true"], commands)[1] == ["--skip_bad_shards", "true"]


def test_a_field_without_a_value_takes_none_from_the_flag_behind_it() -> None:
    _, commands = cli.parsers()
    own, fields = cli.split_fields(["train", "--autocast", "--resume", "auto"], commands)
    assert (own, fields) == (["train", "--resume", "auto"], ["--autocast"])
    assert cli.main(["train", "--autocast", "--resume", "auto"]) == cli.EXIT_BAD_INPUT


def test_unknown_flags_of_a_command_without_fields_are_refused() -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["demo", "--nothing", "1"])
    assert exit_.value.code == 2


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["demo", "--help"], ["stages", "--help"]])
def test_help_imports_neither_torch_nor_saelens(arguments: list[str]) -> None:
    code = (
        "import sys; sys.orig_argv[1:] = ['-m', 'sae_lens_crosscoder']; from sae_lens_crosscoder.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'sae_lens', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert "sae-lens-crosscoder" in result.stdout


def test_every_field_is_described() -> None:
    from sae_lens_crosscoder.training.field_docs import describe_fields

    text = describe_fields("batchtopk_crosscoder")
    for flag in (
        "--lr = None",
        "--sae.k = 100",
        "--logger.log_to_wandb = True",
        "--buffer_dtype = None",
        "chat_template",
    ):
        assert flag in text
    assert "Learning rate; None is the recipe's." in text


def test_fields_are_parsed_as_json_with_plain_words_left_as_they_are() -> None:
    arguments = ["--lr", "1e-4", "--sae.k=5", "--streaming", "false", "--dtype", "float64", "--sae.b-dec-init", "zeros"]
    expected: dict[str, Any] = {
        "lr": 1e-4,
        "sae": {"k": 5, "b_dec_init": "zeros"},
        "streaming": False,
        "dtype": "float64",
    }
    assert parse_fields(arguments) == expected
    with pytest.raises(ConfigError, match="'stray' belongs to no flag"):
        parse_fields(["stray"])
    with pytest.raises(ConfigError, match="--autocast has no value"):
        parse_fields(["--autocast", "--lr", "1"])


def test_a_folder_in_the_place_of_the_file_of_an_evaluation_is_told_before_it_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", "nowhere", "--out", str(tmp_path)]) == cli.EXIT_BAD_INPUT
    assert f"{tmp_path} is a folder. Name the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["load", "nowhere", "--out"], ["convert", "nowhere"], ["eval", "nowhere", "--out"]]
)
def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_loaded(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main([*command, str(tmp_path / "file" / "inside" / "out")]) == cli.EXIT_BAD_INPUT
    assert "failed: [Errno 20] Not a directory" in capsys.readouterr().err


def test_a_warning_of_ours_is_one_line_and_those_of_others_stay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warned(*_: Any) -> None:
        message = "Pass scales=[...]."
        for file in (cli.__file__, "/elsewhere/library.py"):
            sys.stderr.write(warnings.formatwarning(message, UserWarning, file, 7))

    before = warnings.formatwarning
    monkeypatch.setattr(diff_command, "_diff", warned)
    assert cli.main(["diff", "folder"]) == 0
    shown = capsys.readouterr().err
    assert shown == "warning: Pass scales=[...].\n/elsewhere/library.py:7: UserWarning: Pass scales=[...].\n"
    assert warnings.formatwarning is before
