"""`publish`: a crosscoder with its report and card to the Hugging Face Hub."""

from __future__ import annotations

from argparse import BooleanOptionalAction, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lens_crosscoder.cli.parser import given, labelled

if TYPE_CHECKING:
    from sae_lens_crosscoder.cli.parser import Commands
    from sae_lens_crosscoder.hub import Publication

_DESCRIPTION = """Publish a crosscoder to the Hugging Face Hub: weights and configurations in SAELens's layout, metrics,
the report of the diff, figures and a model card, in one commit. Names of the Hub are published, paths,
accounts and tokens of this machine are not. Log in with `hf auth login`; --dry-run shows what would be
published and asks nothing of the Hub."""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("publish", help="publish a crosscoder to the Hub", description=_DESCRIPTION)
    flag = parser.add_argument
    flag("path", type=Path, help="folder of a crosscoder")
    flag("repo_id", metavar="REPO_ID", help="repository, as owner/name; made if it is not there")
    flag("--id", help="folder of the crosscoder in it; default the hook point, or the labels of the sources")
    flag("--revision", help="branch to publish to, made if it is not there; default main")
    flag("--private", action="store_true", default=None, help="make the repository private")
    flag("--replace", action="store_true", default=None, help="put it in the place of another one with this id")
    flag("--license", help='licence of what is published, as the Hub names it ("mit", "gemma"); default none is stated')
    flag("--report-folder", type=Path, metavar="FOLDER", help="where diff wrote its report; default PATH")
    flag(
        "--with-report",
        action=BooleanOptionalAction,
        help="publish report.html, which quotes the data; default only if all data sets are on the Hub",
    )
    for what in ("model", "dataset"):
        flag(
            f"--{what}-name",
            action="append",
            default=[],
            metavar="LABEL=NAME",
            help=f"name on the Hub of a {what} that was read from a local folder, by its label",
        )
    flag("--dry-run", action="store_true", help="show the files and the card, and publish nothing")
    parser.runs(_publish, when_stopped="Nothing is published by halves; call it again, and it goes on.")


def _publish(options: Namespace) -> None:
    from sae_lens_crosscoder.hub import BundleOptions, PublishOptions, publish_crosscoder

    contents = BundleOptions(
        **given(options, "report_folder", "with_report"),
        model_names=labelled(options.model_name),
        dataset_names=labelled(options.dataset_name),
    )
    how = PublishOptions(**given(options, "revision", "private", "replace", "license"), contents=contents)
    done = publish_crosscoder(options.path, options.repo_id, options.id, how, dry_run=options.dry_run)
    _print_files(done)
    where = f"{done.place.id} in {done.place.repo_id}"
    if options.dry_run:
        print(f"\nCard:\n\n{done.card}\nThis was a dry run: nothing was sent. {where} would hold the files above.")
    elif done.commit is None:
        print(f"{where} was published already, just so.")
    else:
        print(f"Published {where}, commit {done.commit}.")


def _print_files(done: Publication) -> None:
    for name, size in done.sizes_bytes.items():
        print(f"{size:>14,}  {done.place.id}/{name}")
    for name, reason in done.left_out.items():
        print(f"{'left out':>14}  {name}: {reason}")
