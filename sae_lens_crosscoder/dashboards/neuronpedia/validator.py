"""The check of files for Neuronpedia: whatever it would refuse, and whatever it would take and silently lose."""

from __future__ import annotations

from pathlib import Path

from sae_lens_crosscoder.dashboards.neuronpedia.export_check import SourceFolderCheck, source_folders
from sae_lens_crosscoder.dashboards.neuronpedia.keys import SeenKeys
from sae_lens_crosscoder.dashboards.neuronpedia.payload_check import check_payload, payload_files
from sae_lens_crosscoder.dashboards.neuronpedia.problems import Findings, Problem
from sae_lens_crosscoder.files import existing_folder


def validate_export(folder: str | Path) -> list[Problem]:
    """The problems of all exports and payloads in a folder, by file and line; empty if Neuronpedia takes them all.

    An export is a folder `{model id}/{source id}` with `release.jsonl`, `model.jsonl`, `sourceset.jsonl`,
    `source.jsonl`, `features/` and `activations/`; a payload is a file `payload-*.json`. Both are found at any depth.
    Whether the users that rows name exist on Neuronpedia cannot be told from here.

    Of one file no more than 100 problems are listed.

    Raises:
        NotFoundError: There is no such folder.
    """
    root = existing_folder(folder, "export").resolve()
    findings = Findings(root)
    ids = SeenKeys("id")
    folders = source_folders(root)
    for source_folder in folders:
        SourceFolderCheck(source_folder, findings, ids).check()
    ids.check(findings)
    n_payloads = _check_payloads(root, findings)
    if not folders and not n_payloads:
        findings.add(root, 0, "", "there is no export here (source.jsonl, features/) and no payload-*.json")
    return findings.all()


def validate_payloads(folder: str | Path) -> list[Problem]:
    """The problems of the payloads in a folder alone; one if there are no payloads.

    Raises:
        NotFoundError: There is no such folder.
    """
    root = existing_folder(folder, "folder of payloads").resolve()
    findings = Findings(root)
    if not _check_payloads(root, findings):
        findings.add(root, 0, "", "there is no payload-*.json here")
    return findings.all()


def _check_payloads(root: Path, findings: Findings) -> int:
    features = SeenKeys("latent")
    files = payload_files(root)
    for file in files:
        check_payload(file, findings, features)
    features.check(findings)
    return len(files)
