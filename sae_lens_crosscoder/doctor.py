"""What this machine and its Python have: versions that fit together, devices, memory, disk, the Hub login."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from sae_lens_crosscoder.resources import available_memory, free_disk, in_gb

DISTRIBUTION = "sae-lens-crosscoder"
_SHOWN = ("sae-lens", "torch", "transformer-lens", "transformers", "datasets", "huggingface_hub", "sae-dashboard")
_IMPORTED = ("torch", "datasets", "transformer_lens", "sae_lens", "sae_lens_crosscoder")
_IMPORT_SECONDS = 300


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    name: str
    """What was looked at."""

    text: str
    """What was found."""

    remedy: str | None = None
    """What to do about it, such as a pip command; None if all is well."""


def examine(say: Callable[[Finding], None]) -> list[Finding]:
    """Look at everything; say each finding as it comes, and return the ones that need a remedy."""
    problems: list[Finding] = []
    for finding in _findings():
        say(finding)
        if finding.remedy is not None:
            problems.append(finding)
    return problems


def _findings() -> Iterable[Finding]:
    yield Finding("Python", f"{platform.python_version()} in {sys.prefix}")
    installed = {name: version for name in _SHOWN if (version := installed_version(name)) is not None}
    yield Finding("Packages", ", ".join(f"{name} {version}" for name, version in installed.items()))
    yield from unmet_requirements(_requirements())
    if import_problem(", ".join(_IMPORTED)) is None:
        yield Finding("Imports", f"{', '.join(_IMPORTED)}: all work")
        yield _devices()
    else:
        yield from filter(None, map(import_problem, _IMPORTED))
    yield _memory()
    yield from _disks()
    yield _hub()


def installed_version(distribution: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> list[str]:
    """What this package requires, and sae-dashboard if it is installed."""
    found: list[str] = []
    for name in (DISTRIBUTION, "sae-dashboard"):
        if installed_version(name) is not None:
            found += metadata.requires(name) or []
    return found


def unmet_requirements(
    requirements: Iterable[str], version: Callable[[str], str | None] = installed_version
) -> list[Finding]:
    """Requirements that the installed packages do not meet, each with the pip command that mends it.

    Args:
        requirements: As in a package's metadata; those of extras are passed over.
        version: Gives the installed version of a package.
    """
    found: list[Finding] = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        present = version(requirement.name)
        if present is None or not requirement.specifier.contains(present, prereleases=True):
            state = "is not installed" if present is None else f"is {present}"
            wanted = f"{requirement.name}{requirement.specifier}"
            found.append(Finding(requirement.name, f"{state}, but {wanted} is needed", f'pip install "{wanted}"'))
    return found


def import_problem(module: str, command: Iterable[str] = (sys.executable, "-c")) -> Finding | None:
    """Import a module, or several, in a process of its own, so that even a crash is seen; None if it works."""
    try:
        result = subprocess.run(
            [*command, f"import {module}"], capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(module, f"importing it takes more than {_IMPORT_SECONDS} s", "look at the file system")
    if result.returncode == 0:
        return None
    lines = result.stderr.strip().splitlines()
    reason = lines[-1] if lines else f"the process ended with code {result.returncode}"
    return Finding(module, f"cannot be imported: {reason}", "mend the versions named above, or install anew")


def _devices() -> Finding:
    script = (
        "import json, torch\n"
        "gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]\n"
        "print(json.dumps({'gpus': [[g.name, g.total_memory] for g in gpus], 'built': torch.version.cuda,\n"
        "    'mps': torch.backends.mps.is_available(), 'threads': torch.get_num_threads()}))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return describe_devices(json.loads(result.stdout.splitlines()[-1]))


def describe_devices(found: Mapping[str, object]) -> Finding:
    """The devices that torch finds, from `gpus` (name, bytes), `built` (CUDA of the build), `mps` and `threads`."""
    gpus = found["gpus"]
    assert isinstance(gpus, list)
    names = [f"cuda:{n} {name} ({in_gb(size)})" for n, (name, size) in enumerate(gpus)]
    if found["mps"]:
        names.append("mps")
    text = ", ".join([*names, f"cpu ({found['threads']} threads)"])
    without = "" if gpus or found["mps"] else f"; no GPU (torch is built {_build(found['built'])})"
    return Finding("Devices", text + without)


def _build(cuda: object) -> str:
    return "for the CPU only" if cuda is None else f"for CUDA {cuda}"


def _memory() -> Finding:
    return Finding("Memory", f"{in_gb(available_memory())} free, {os.cpu_count()} cores")


def _disks() -> Iterable[Finding]:
    from huggingface_hub import constants

    for name, path in (("Disk here", Path.cwd()), ("Disk of the Hub's cache", Path(constants.HF_HUB_CACHE))):
        yield Finding(name, f"{in_gb(free_disk(path))} free at {path}")


def _hub() -> Finding:
    from huggingface_hub import constants, get_token

    state = "logged in" if get_token() else "not logged in (hf auth login); public models and crosscoders load without"
    offline = "; offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    return Finding("Hugging Face Hub", f"{state}, {constants.ENDPOINT}{offline}")
