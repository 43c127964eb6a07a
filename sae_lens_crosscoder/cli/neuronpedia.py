"""`neuronpedia`, `neuronpedia-validate` and `neuronpedia-upload`: dashboards for neuronpedia.org."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lens_crosscoder.cli.parser import given, labelled, parse_fields
from sae_lens_crosscoder.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sae_lens_crosscoder.cli.parser import Commands
    from sae_lens_crosscoder.dashboards.neuronpedia import SourceName
    from sae_lens_crosscoder.joint_model import JointModel
    from sae_lens_crosscoder.training.saved_run import SavedRun

_EXPORT = """Export dashboards of a crosscoder's latents for Neuronpedia: one source for each model, with that model's
logits and its slice of the decoder. Writes OUT/exports for Neuronpedia's importer and OUT/payloads for its upload
API (see neuronpedia-upload), and checks both. Needs the extra "dashboard", or --batches with batches of
sae-dashboard that were made before. Fields of the run's configuration, such as --datasets, can be changed by flags."""

_VALIDATE = """List everything in a folder of exports and payloads that Neuronpedia would refuse, or would take and
silently lose, with its file and line. The exit code is 0 only if there is nothing."""

_UPLOAD = """Upload the payloads in a folder to Neuronpedia. The model and the source set must exist there, and the
source set must be yours: make it on neuronpedia.org. The API key is read from an environment variable. What failed
for the moment is tried again, and a command that was stopped goes on where it was."""


def add(commands: Commands) -> None:
    """Declare the commands."""
    export = commands.add_parser(
        "neuronpedia", help="export dashboards for Neuronpedia, one source for each model", description=_EXPORT
    )
    flag = export.add_argument
    export.add_crosscoder()
    flag("--out", type=Path, required=True, help="folder to write to")
    flag("--release", required=True, help="name of the release on Neuronpedia")
    flag("--creator-name", required=True, help="who made the crosscoder")
    flag("--creator-id", help="id of a user in Neuronpedia's database, who owns the rows")
    flag("--seeded-creator", action="store_true", help="owned by the user that every new Neuronpedia database has")
    flag("--description", help="title of the release; default its name")
    flag("--url", action="append", default=[], help="a page of the release; may be given again")
    flag("--source-set", default="crosscoder", help='name of the source set; default "crosscoder"')
    flag("--model-id", action="append", default=[], metavar="LABEL=ID", help="Neuronpedia's id of a model")
    flag("--layer", action="append", default=[], metavar="LABEL=N", help="a layer that the hook's name does not tell")
    flag("--latents", metavar="LIST", default="all", help="which latents, such as 1,2,5-9; default all")
    flag("--batches", type=Path, metavar="DIR", help="folder with a folder of sae-dashboard's batches for each label")
    flag("--budget-tokens", type=int, help="tokens that latents are read on; default 262,144")
    export.runs(_export, takes_fields=True, when_stopped="Called again, it goes on after the last finished batch.")

    validate = commands.add_parser(
        "neuronpedia-validate", help="check exports and payloads for Neuronpedia", description=_VALIDATE
    )
    validate.add_argument("folder", type=Path, help="folder with exports or payloads, at any depth")
    validate.runs(_validate)

    upload = commands.add_parser(
        "neuronpedia-upload", help="upload payloads to a source set of yours on Neuronpedia", description=_UPLOAD
    )
    upload.add_argument("folder", type=Path, help="folder with payloads, at any depth")
    upload.add_argument(
        "--api-key-env", metavar="NAME", required=True, help="environment variable that holds the API key"
    )
    upload.add_argument("--base-url", metavar="URL", help="address of another Neuronpedia, such as one of your own")
    upload.runs(_upload, when_stopped="Called again, it goes on after the last payload that was accepted.")


def _export(options: Namespace) -> None:
    from sae_lens_crosscoder.dashboards.neuronpedia import SEEDED_CREATOR_ID, Release, export_neuronpedia
    from sae_lens_crosscoder.dashboards.neuronpedia.crosscoder import export_sources, source_names
    from sae_lens_crosscoder.dashboards.neuronpedia.export import check_place
    from sae_lens_crosscoder.training.devices import check_device
    from sae_lens_crosscoder.training.saved_run import SavedRun

    if (options.creator_id is None) == (not options.seeded_creator):
        raise ConfigError("Who owns the rows? Give either --creator-id ID or --seeded-creator.")
    creator_id = options.creator_id or SEEDED_CREATOR_ID
    release = Release(
        options.release, options.description or options.release, options.creator_name, creator_id, options.url
    )
    check_device(options.device)
    check_place(options.out)
    run = SavedRun(options.path, options.device)
    layers = {label: _number(text) for label, text in labelled(options.layer).items()}
    names = source_names(run.sources, options.source_set, labelled(options.model_id), layers)
    joint = None
    if options.batches is None:
        joint, batches = _written_batches(options, run, names)
    else:
        batches = {label: options.batches / label for label in run.sources.labels}
    for source in export_neuronpedia(export_sources(run.sources, batches, joint), options.out, release):
        print(
            f"{source.folder}: {source.n_latents} latents ({source.n_dead} dead), {source.n_windows} windows, "
            f"{source.n_payloads} payloads."
        )


def _written_batches(
    options: Namespace, run: SavedRun, names: Mapping[str, SourceName]
) -> tuple[JointModel, dict[str, Path]]:
    from sae_lens_crosscoder.dashboards import DashboardSubject, write_batches
    from sae_lens_crosscoder.dashboards.batches import BatchNames
    from sae_lens_crosscoder.dashboards.facts import parse_latents

    latents = parse_latents(options.latents, run.sae.cfg.d_sae)
    subject = DashboardSubject.of_run(run, overrides=parse_fields(options.fields), **given(options, "budget_tokens"))
    called = {label: BatchNames(name.model_id, name.source_set, name.layer) for label, name in names.items()}
    return subject.joint, write_batches(subject, latents, options.out / "batches", called)


def _validate(options: Namespace) -> None:
    from sae_lens_crosscoder.dashboards.neuronpedia import validate_export

    problems = validate_export(options.folder)
    for problem in problems:
        print(problem)
    if problems:
        raise DataError(
            f"Neuronpedia would refuse or lose what stands above; problems in {options.folder}: {len(problems)}."
        )
    print(f"{options.folder} has no problems.")


def _upload(options: Namespace) -> None:
    from sae_lens_crosscoder.dashboards.neuronpedia import ApiKey, UploadConfig, upload_payloads

    config = UploadConfig(**given(options, "base_url"))
    done = upload_payloads(options.folder, ApiKey(options.api_key_env), config)
    before = f", {done.n_before} had been before" if done.n_before else ""
    print(f"{done.n_uploaded} payloads were uploaded{before}: {done.n_latents} latents in all.")


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"{text!r} is no number of a layer: 0, 1, 2 and so on.")
    return int(text)
