"""What the documentation and the README tell readers to type: it parses, and every name in it exists."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from sae_lens_crosscoder import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


EXAMPLES = [
    pytest.param(code, id=f"{page.stem}-{i}") for page in PAGES for i, code in enumerate(_blocks(page, "python"))
]
COMMANDS = sorted(
    {
        line.partition("#")[0].strip()
        for page in PAGES
        for block in _blocks(page, "sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("sae-lens-crosscoder ")
    }
)


@pytest.mark.parametrize("code", EXAMPLES)
def test_every_name_that_an_example_imports_from_the_package_is_there(code: str) -> None:
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").split(".")[0] in ("sae_lens_crosscoder", "sae_lens")]
    for node in ours:
        module = importlib.import_module(str(node.module))
        # What needs an optional package is in __all__ and may not be there.
        public = getattr(module, "__all__", ())
        missing = [a.name for a in node.names if a.name not in public and not hasattr(module, a.name)]
        assert missing == [], node.module


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_and_flag_that_is_shown_exists(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    _, commands = cli.parsers()
    assert name in commands
    parser = commands[name]
    flags = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    if not parser.takes_fields:
        assert flags <= set(parser.own_flags)
    elif name != "train":
        # What is no flag of such a command is a field of a run's configuration.
        assert {flag for flag in flags if flag not in parser.own_flags and "-" in flag[2:]} == set()


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "ARCHITECTURE.md"])
def test_every_link_of_the_repository_s_own_pages_leads_to_a_file(page: str) -> None:
    """`mkdocs build --strict` looks at the links of the site."""
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text())
    own = [link for link in links if not link.startswith("https://")]
    assert [link for link in own if not (ROOT / link).exists()] == []


def test_every_command_is_in_the_table_of_commands() -> None:
    page = (ROOT / "docs" / "api" / "command-line.md").read_text()
    _, commands = cli.parsers()
    assert [name for name in commands if f"| `{name}" not in page] == []


def test_the_configuration_file_that_is_shown_is_a_configuration() -> None:
    import yaml

    from sae_lens_crosscoder import CrosscoderRunnerConfig

    (text,) = _blocks(ROOT / "docs" / "howto" / "train.md", "yaml")
    values = yaml.safe_load(text)
    values["device"] = "cpu"
    cfg = CrosscoderRunnerConfig.from_dict(values, new_run=True)
    assert cfg.joint_sources.labels == ["base", "chat"]
    assert cfg.train_batch_size_tokens == 2048


def test_the_migration_table_names_things_that_exist() -> None:
    from sae_lens_crosscoder import (
        BatchTopKTrainingCrosscoderConfig,
        CrosscoderRunnerConfig,
        JumpReLUTrainingCrosscoderConfig,
        StandardTrainingCrosscoderConfig,
    )

    configs = (
        BatchTopKTrainingCrosscoderConfig,
        CrosscoderRunnerConfig,
        JumpReLUTrainingCrosscoderConfig,
        StandardTrainingCrosscoderConfig,
    )
    fields = {name for config in configs for name in config.__dataclass_fields__}
    rows = [row.split("|")[2] for row in (ROOT / "docs" / "migration.md").read_text().splitlines() if row[:1] == "|"]
    named = {name for cell in rows for name in re.findall(r"`(?:sae\.)?([a-z][a-z0-9]*_[a-z0-9_]+)`", cell)}
    elsewhere = {
        # functions, metrics and metadata, which have tests of their own
        *(
            "activation_scale",
            "hook_name",
            "relative_decoder_norms",
            "minder_delta",
            "explained_variance_mean_of_ratios",
            "explained_variance_centred",
        ),
    }
    assert named - fields - elsewhere == set()
