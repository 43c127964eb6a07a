"""`diff`: show what differs between two models, and whether it is real."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lens_crosscoder.cli.parser import given, parse_fields
from sae_lens_crosscoder.errors import ConfigError

if TYPE_CHECKING:
    from sae_lens_crosscoder.cli.parser import Commands
    from sae_lens_crosscoder.diffing import ClassThresholds, PairGeometry

_DESCRIPTION = """Compare two models by their crosscoder: decoder norms and cosines, latent scaling, where latents
fire, the KL of the models and which latents carry it, causal tests. Writes report.html (opens with no
network), latents.parquet, latents.csv and decoder.png. A diff that was stopped goes on when it is called
again. Fields of the run's configuration, such as --datasets, can be changed by flags."""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "diff", help="show what differs between the models, and whether it is real", description=_DESCRIPTION
    )
    flag = parser.add_argument
    parser.add_crosscoder()
    flag("--out", type=Path, help="folder to write to; default PATH")
    parser.add_pair()
    flag("--budget-tokens", type=int, help="tokens that latents are read on; default 1,000,000")
    flag("--kl-budget-tokens", type=int, help="tokens that KL is attributed on; default 65,536")
    flag("--causal-budget-tokens", type=int, help="tokens of the causal tests; default 16,384")
    flag("--decoder-only", action="store_true", help="read the weights alone, without models and data")
    flag("--exclusive-above", type=float, help="share of the norm above which a latent is one model's own")
    flag("--shared-low", type=float, help="shared latents have every share above this")
    flag("--shared-high", type=float, help="shared latents have every share below this")
    parser.runs(
        _diff, takes_fields=True, when_stopped="A diff goes on from its last saved state when you call it again."
    )


def _diff(options: Namespace) -> None:
    from sae_lens_crosscoder.diffing import ClassThresholds

    thresholds = ClassThresholds(**given(options, "exclusive_above", "shared_low", "shared_high"))
    (_diff_decoder if options.decoder_only else _diff_models)(options, thresholds)


def _diff_models(options: Namespace, thresholds: ClassThresholds) -> None:
    from sae_lens_crosscoder.diffing import save_png
    from sae_lens_crosscoder.model_diff import DiffConfig, diff_models, subject_of_run
    from sae_lens_crosscoder.training.devices import check_device
    from sae_lens_crosscoder.training.saved_run import SavedRun

    check_device(options.device)
    named = given(options, "base", "finetuned", "budget_tokens", "kl_budget_tokens", "causal_budget_tokens")
    config = DiffConfig(**named, class_thresholds=thresholds)
    out = options.out or options.path
    subject = subject_of_run(SavedRun(options.path, options.device), config.budget_tokens, parse_fields(options.fields))
    found = diff_models(subject, out, config)
    for paragraph in found.report.overview.paragraphs:
        print(paragraph)
    if found.geometry is not None:
        save_png(found.geometry, out / "decoder.png")
        _print_counts(found.geometry)
    print(f"The report is {out / 'report.html'}.")


def _diff_decoder(options: Namespace, thresholds: ClassThresholds) -> None:
    from sae_lens_crosscoder.diffing import PairGeometry, write_decoder_report
    from sae_lens_crosscoder.training.saved_run import SavedRun

    if options.fields:
        raise ConfigError(f"{options.fields[0]} has no effect with --decoder-only, which reads the weights alone.")
    run = SavedRun(options.path)
    labels = run.sources.pair(options.base, options.finetuned)
    geometry = PairGeometry.from_sources(run.sae.W_dec, run.sources, labels, thresholds, run.dead)
    files = write_decoder_report(geometry, options.out or options.path)
    _print_counts(geometry)
    print(f"The report is {files['report']}.")


def _print_counts(geometry: PairGeometry) -> None:
    for name, count in geometry.counts.items():
        print(f"{name:>20} {count:>8,}")
    print(f"({geometry.thresholds.describe()})")
