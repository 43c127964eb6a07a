from __future__ import annotations

import sys

import pytest

from sae_lens_crosscoder import cli
from sae_lens_crosscoder.doctor import Finding, describe_devices, examine, import_problem, unmet_requirements

INSTALLED = {"pyarrow": "26.0.0", "torch": "2.13.0+cpu", "numpy": "1.26.4"}


def test_each_requirement_that_is_not_met_comes_with_the_command_that_mends_it() -> None:
    requirements = [
        "pyarrow<26",
        "torch>=2.6",
        "datasets>=3.1",
        'sae-dashboard<0.9; extra == "dashboard"',
        'tomli; python_version < "3"',
    ]
    assert unmet_requirements(requirements, INSTALLED.get) == [
        Finding("pyarrow", "is 26.0.0, but pyarrow<26 is needed", 'pip install "pyarrow<26"'),
        Finding("datasets", "is not installed, but datasets>=3.1 is needed", 'pip install "datasets>=3.1"'),
    ]


def test_a_module_that_cannot_be_imported_is_named_with_the_last_line_of_its_error() -> None:
    assert import_problem("json") is None
    found = import_problem("no_such_module")
    assert found is not None
    assert found.text == "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"


def test_even_a_crash_of_an_import_is_seen() -> None:
    found = import_problem("json", (sys.executable, "-c", "import os; os.abort()"))
    assert found is not None
    assert "the process ended with code -6" in found.text


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            {"gpus": [["H200", 150e9]], "built": "12.8", "mps": False, "threads": 8},
            "cuda:0 H200 (150.0 GB), cpu (8 threads)",
        ),
        (
            {"gpus": [], "built": None, "mps": False, "threads": 2},
            "cpu (2 threads); no GPU (torch is built for the CPU only)",
        ),
        ({"gpus": [], "built": None, "mps": True, "threads": 2}, "mps, cpu (2 threads)"),
    ],
)
def test_devices_are_described(found: dict[str, object], text: str) -> None:
    assert describe_devices(found) == Finding("Devices", text)


def test_the_command_examines_this_installation_and_keeps_the_token_to_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_mine")
    code = cli.main(["doctor"])
    captured = capsys.readouterr()
    assert code == 0, captured.out + captured.err
    for name in ("Python", "Packages", "Imports", "Devices", "Memory", "Disk here", "Hugging Face Hub"):
        assert f"  {name} " in captured.out
    assert "logged in" in captured.out
    assert "secret" not in captured.out + captured.err


def test_what_is_wrong_ends_with_code_2_and_how_to_mend_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Finding("pyarrow", "is 26", 'pip install "pyarrow<26"')
    monkeypatch.setattr("sae_lens_crosscoder.doctor._findings", lambda: iter([Finding("Python", "3"), problem]))
    assert examine(lambda _: None) == [problem]
    assert cli.main(["doctor"]) == cli.EXIT_BAD_INPUT
    captured = capsys.readouterr()
    assert "! pyarrow" in captured.out
    assert 'To mend: pip install "pyarrow<26"' in captured.err
