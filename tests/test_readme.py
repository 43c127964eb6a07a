"""The README, followed from top to bottom by someone without a GPU, a network and weights."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from chromium import Chromium
from packaging.requirements import Requirement

from sae_lens_crosscoder import cli

ROOT = Path(__file__).parents[1]
PROGRAM = "sae-lens-crosscoder"
TOY_DEMO = """
from sae_lens_crosscoder.demo import DemoConfig, PairConfig, run_demo
pair = PairConfig(n_chars=200_000, base_steps=20, finetuning_steps=60)
run_demo("out/demo", config=DemoConfig(pair=pair, n_steps=5, n_documents=3_000, n_prompts=8, n_ranking_prompts=8))
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of the README."""

    mark: str
    """What the comment above it says of the test; empty for a block that is run as it stands."""

    language: str
    code: str

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, without remarks."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [line for line in (line.partition("#")[0].strip() for line in lines) if line]


def blocks() -> list[Block]:
    pattern = r"^(?:<!-- test: (.*?) -->\n)?```(\w*)\n(.*?)^```"
    return [Block(*found) for found in re.findall(pattern, (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)]


def joined(found: list[Block]) -> list[Block]:
    """The blocks, those of Python that follow each other as one: the reader types them into one session."""
    whole: list[Block] = []
    for block in found:
        if whole and block.language == whole[-1].language == "python" and block.mark == whole[-1].mark == "":
            block = replace(block, code=f"{whole.pop().code}\n{block.code}")
        whole.append(block)
    return whole


def run(folder: Path, *command: str) -> None:
    """Run a command as the reader does, in a folder of theirs."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def run_as_it_stands(block: Block, folder: Path) -> None:
    if block.language == "python":
        run(folder, sys.executable, "-c", block.code)
    else:
        run(folder, "bash", "-euc", block.code)


def run_demo_at_toy_size(block: Block, folder: Path) -> None:
    """Models of the demo's shape that have learnt little, in the demo's place."""
    assert block.commands == [f"{PROGRAM} demo"]
    run(folder, sys.executable, "-c", TOY_DEMO)


def check_installation(block: Block, folder: Path) -> None:
    """Every target and every extra is there; installing them takes gigabytes from an index."""
    project = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    for line in block.commands:
        words = shlex.split(line)
        if words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        elif words[:2] == ["pip", "install"]:
            assert words[2].partition("[")[0] == "."
            extras = Requirement(f"here{words[2][1:]}").extras
            assert extras <= set(re.findall(r"^(\w+) = \[", project, re.MULTILINE))
        else:
            assert words == ["source", ".venv/bin/activate"]


def check_configuration(block: Block, folder: Path) -> None:
    """The configuration is made, for a processor where there is no GPU; the run needs the Hub too."""
    configured, _, remainder = block.code.partition("CrosscoderTrainingRunner(cfg)")
    assert remainder == ".run()\n"
    if not torch.cuda.is_available():
        configured = configured.replace('"cuda"', '"cpu"')
    run(folder, sys.executable, "-c", configured + "assert cfg.sae.d_in == cfg.joint_sources.d_in == 4608")


def check_flags(block: Block, folder: Path) -> None:
    """Every command parses; `tests/docs` looks at each flag."""
    parser, commands = cli.parsers()
    for line in block.commands:
        program, *arguments = shlex.split(line)
        assert program == PROGRAM
        own, _ = cli.split_fields(arguments, commands)
        parser.parse_args(own)


HANDLERS: dict[str, Callable[[Block, Path], None]] = {
    "": run_as_it_stands,
    "toy size": run_demo_at_toy_size,
    "installs": check_installation,
    "configuration only": check_configuration,
    "flags only": check_flags,
}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of someone who has typed every block of the README, in order."""
    folder = tmp_path_factory.mktemp("reader")
    program = folder / "bin" / PROGRAM
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sae_lens_crosscoder "$@"\n')
    program.chmod(0o755)
    for block in joined(blocks()):
        HANDLERS[block.mark](block, folder)
    return folder


def test_every_kind_of_block_is_in_the_readme() -> None:
    found = blocks()
    assert {block.mark for block in found} == set(HANDLERS)
    fences = re.findall(r"^```", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(fences) == 2 * len(found)


@pytest.mark.slow
def test_a_newcomer_who_follows_the_readme_gets_a_report(reader: Path) -> None:
    assert (reader / "out" / "demo" / "report.html").is_file()
    first = {path.name for path in (reader / "out" / "first").iterdir()}
    assert {"report.html", "latents.parquet", "latents.csv", "decoder.png", "metrics.json"} <= first


@pytest.mark.slow
def test_the_report_opens_in_a_browser_and_lists_latents(reader: Path, browser: Chromium) -> None:
    browser.open(reader / "out" / "first" / "report.html", "#latents")
    browser.wait("document.querySelectorAll('.latents tbody tr[data-latent]').length > 10")
    assert browser.problems == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:", "about:"))] == []
