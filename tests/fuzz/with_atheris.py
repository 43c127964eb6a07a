"""Has atheris look for input that breaks the tests of this folder: it prefers what reaches lines not reached before.

`pip install atheris`, then `python tests/fuzz/with_atheris.py --runs 5000` from the root of the repository. Each target
runs in a process of its own; what breaks one is printed by hypothesis as the arguments of the test, to be kept there as
an `@example`.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

_LIBFUZZER = ("-max_len=2048", "-len_control=0", "-verbosity=0", "-timeout=120")
MODULES = ("test_bad_input", "test_damaged_files", "test_hostile_text")


def targets() -> dict[str, str]:
    """The module of every test, by its name."""
    folder = Path(__file__).parent
    names = {module: re.findall(r"^def (test_\w+)", (folder / f"{module}.py").read_text(), re.M) for module in MODULES}
    return {name: module for module, tests in names.items() for name in tests}


def fuzz(name: str, n_runs: int, seed: int) -> None:
    """One target; ends the process."""
    import atheris

    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=["sae_lens_crosscoder"]):
        module: Any = importlib.import_module(f"fuzz.{targets()[name]}")
    one_input = getattr(module, name).hypothesis.fuzz_one_input
    n_inputs = n_cases = 0

    def counted(content: bytes) -> None:
        nonlocal n_inputs, n_cases
        n_inputs += 1
        n_cases += one_input(content) is not None  # None: too short for a case
        if n_inputs % 100 == 0 or n_inputs >= n_runs:
            print(n_inputs, n_cases, flush=True)

    atheris.Setup([sys.argv[0], f"-runs={n_runs}", f"-seed={seed}", *_LIBFUZZER], counted)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(targets()), help="targets; all by default")
    parser.add_argument("--runs", type=int, default=2500, help="inputs a target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        fuzz(options.names[0], options.runs, options.seed)
    broken: list[str] = []
    for name in options.names:
        start = time.monotonic()
        command = [sys.executable, __file__, name, "--here", f"--runs={options.runs}", f"--seed={options.seed}"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - start
        n_inputs, n_cases = ended.stdout.split()[-2:] or (0, 0)
        outcome = "broken" if ended.returncode else "sound"
        print(f"{name}: {n_inputs} inputs, {n_cases} whole cases, {seconds:.0f} s, {outcome}", flush=True)
        if ended.returncode:
            broken.append(name)
            print(ended.stderr[-6000:], flush=True)
    sys.exit(bool(broken))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
    main()
