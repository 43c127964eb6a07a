"""`dashboard`: pages of single latents, with every model's logits side by side."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lens_crosscoder.cli.parser import given, parse_fields
from sae_lens_crosscoder.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from sae_lens_crosscoder.cli.parser import Commands

_DESCRIPTION = """Show latents as sae-dashboard does: where they fire and how strongly, and which tokens each model
writes by them, side by side. Needs the extra "dashboard". The pages open with no network; index.html lists and
finds the latents. Called again, a command that was stopped goes on. Fields of the run's configuration, such as
--datasets, can be changed by flags.

Latents are chosen by number (--latents 1,2,5-9) or by a column (--top 50 --by relative_norm): any column of the
latents.parquet that `diff` wrote into PATH (or into --diff DIR), else relative_norm, cosine and norms. --top leaves
out dead latents, which never fired or whose decoder is zero."""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "dashboard", help="show single latents with every model's logits side by side", description=_DESCRIPTION
    )
    flag = parser.add_argument
    parser.add_crosscoder()
    flag("--latents", metavar="LIST", help="which latents, such as 1,2,5-9; or all")
    flag("--top", type=int, metavar="N", help="the N latents with the largest values of --by")
    flag("--by", metavar="COLUMN", help="column that --top goes by; default relative_norm")
    flag("--ascending", action="store_true", help="--top takes the smallest values")
    flag("--diff", type=Path, metavar="DIR", help="folder that `diff` wrote to; default PATH")
    flag("--out", type=Path, help="folder to write to; default PATH/dashboards")
    flag("--budget-tokens", type=int, help="tokens that latents are read on; default 262,144")
    flag("--n-latents-per-page", type=int, help="latents of one page; default 128")
    flag("--fold-final-norm", action="store_true", default=None, help="put the final norm's weights into the logits")
    parser.runs(_dashboard, takes_fields=True, when_stopped="Called again, it goes on after the last finished page.")


def _dashboard(options: Namespace) -> None:
    if (options.latents is None) == (options.top is None):
        raise ConfigError("Which latents? Give either --latents 1,2,5-9 (or all) or --top N, with --by COLUMN.")
    from sae_lens_crosscoder.dashboards import (
        DashboardConfig,
        DashboardSubject,
        dead_latents,
        first_latents,
        latent_facts,
        write_dashboards,
    )
    from sae_lens_crosscoder.dashboards.facts import parse_latents
    from sae_lens_crosscoder.diffing.diff_report.latent_table import PARQUET
    from sae_lens_crosscoder.training.devices import check_device
    from sae_lens_crosscoder.training.saved_run import SavedRun

    check_device(options.device)
    if options.diff is not None and not (options.diff / PARQUET).is_file():
        raise NotFoundError(f"There is no {PARQUET} in {options.diff}: run `diff --out {options.diff}` first.")
    config = DashboardConfig(**given(options, "n_latents_per_page", "fold_final_norm"))
    named = given(options, "budget_tokens")
    run = SavedRun(options.path, options.device)
    # A slip of the pen is told before the models are loaded.
    latents = [] if options.latents is None else parse_latents(options.latents, run.sae.cfg.d_sae)
    subject = DashboardSubject.of_run(run, overrides=parse_fields(options.fields), **named)
    facts = latent_facts(subject, options.diff or options.path)
    if options.top is not None:
        dead = dead_latents(subject, facts)
        latents = first_latents(facts, options.top, options.by, options.ascending, dead)
        if n_dead := int(dead.sum()):
            print(f"Left out {n_dead:,} dead latents: they never fired, or their decoder is zero. --latents shows any.")
    index = write_dashboards(subject, latents, options.out or options.path / "dashboards", config, facts)
    print(f"The dashboards are in {index}.")
