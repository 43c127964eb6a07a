"""The completion scripts: bash runs its own, the others are read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sae_lens_crosscoder import cli

PROGRAM = "sae-lens-crosscoder"
FISH = shutil.which("fish")
ZSH = shutil.which("zsh")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The script of each shell."""
    folder = tmp_path_factory.mktemp("completion")
    capture = pytest.MonkeyPatch()
    found: dict[str, Path] = {}
    for shell in ("bash", "zsh", "fish"):
        path = found[shell] = folder / shell
        with path.open("w") as file:
            capture.setattr("sys.stdout", file)
            assert cli.main(["completion", shell]) == 0
        capture.undo()
    return found


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    program = (
        f'source "{script}"; COMP_WORDS=({PROGRAM} {" ".join(words)}); COMP_CWORD={len(words)}; '
        '_shtab_sae_lens_crosscoder 2>/dev/null; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    run = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    return [word.strip() for word in run.stdout.splitlines() if word.strip()]


def test_bash_completes_commands_flags_and_fields(scripts: dict[str, Path]) -> None:
    assert completed(scripts["bash"], "ne") == ["neuronpedia", "neuronpedia-validate", "neuronpedia-upload"]
    assert completed(scripts["bash"], "diff", "--causal") == ["--causal-budget-tokens"]
    assert completed(scripts["bash"], "train", "--sae.k_a") == ["--sae.k_annealing_steps"]
    assert completed(scripts["bash"], "train", "--logger.wandb_p") == ["--logger.wandb_project"]
    assert completed(scripts["bash"], "demo", "--sae.k_a") == []
    assert completed(scripts["bash"], "completion", "z") == ["zsh"]


def test_bash_completes_paths_where_a_path_is_asked_for(scripts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "crosscoder").mkdir()
    assert completed(scripts["bash"], "diff", f"{tmp_path}/cro") == [f"{tmp_path}/crosscoder"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_scripts_of_other_shells_name_every_command_and_flag(scripts: dict[str, Path], shell: str) -> None:
    text = scripts[shell].read_text()
    _, commands = cli.parsers()
    assert [name for name in commands if name not in text] == []
    mark = "-l " if shell == "fish" else "--"
    flags = {flag.removeprefix("--") for parser in commands.values() for flag in parser.own_flags if flag[:2] == "--"}
    assert {flag for flag in flags if mark + flag not in text} == set()
    assert f"{mark}sae.k_annealing_steps" in text


@pytest.mark.skipif(FISH is None, reason="fish is not installed")
def test_fish_completes_commands(scripts: dict[str, Path]) -> None:
    asked = f'source {scripts["fish"]}; complete -C "{PROGRAM} dem"'
    run = subprocess.run([FISH or "", "-c", asked], capture_output=True, text=True, check=True)
    assert [line.split("\t")[0] for line in run.stdout.splitlines()] == ["demo"]


@pytest.mark.skipif(ZSH is None, reason="zsh is not installed")
def test_zsh_parses_its_script(scripts: dict[str, Path]) -> None:
    subprocess.run([ZSH or "", "-n", str(scripts["zsh"])], check=True)
