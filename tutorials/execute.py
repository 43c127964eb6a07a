"""Executes the tutorials, and writes them as notebooks with their outputs.

`python tutorials/execute.py` executes all in order and writes nothing; `--write` writes `NAME.ipynb` beside each
script; names or numbers choose some: `python tutorials/execute.py 1 2`. What they make lies in `tutorials/out/`; the
pair of models is made once. Progress bars and warnings on stderr are left out of the notebooks.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
MOST_BYTES = 300_000
"""Size that no notebook exceeds."""


def scripts(chosen: list[str]) -> list[Path]:
    """The tutorials in order: all, or those whose name begins with one of the names or numbers."""
    everything = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
    wanted = [name.zfill(2) if name.isdigit() else name for name in chosen]
    unknown = [name for name in wanted if not any(path.name.startswith(name) for path in everything)]
    if unknown:
        raise SystemExit(f"There is no tutorial {unknown[0]!r}. There are {', '.join(p.stem for p in everything)}.")
    return [path for path in everything if not wanted or path.name.startswith(tuple(wanted))]


def execute(script: Path, limit_s: int) -> Any:
    """The notebook of a script, executed in the folder of the tutorials."""
    notebook = jupytext.read(script)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    client = NotebookClient(notebook, timeout=limit_s, record_timing=False, resources={"metadata": {"path": FOLDER}})
    client.execute()
    return without_noise(notebook)


def without_noise(notebook: Any) -> Any:
    """The notebook without stderr, with the pieces of stdout joined and the same cell ids every time."""
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
        if cell.cell_type != "code":
            continue
        kept: list[Any] = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                continue
            if kept and output.output_type == kept[-1].output_type == "stream":
                kept[-1].text += output.text
            else:
                kept.append(output)
        cell.outputs = kept
    return notebook


def cpu_s() -> float:
    """Seconds of processor time that finished kernels have taken, which a busy machine does not change much."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="tutorials to execute; all if none is named")
    parser.add_argument("--write", action="store_true", help="write the notebooks")
    parser.add_argument("--limit-s", type=int, default=900, help="seconds that one cell may take")
    options = parser.parse_args()
    os.environ |= {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    for script in scripts(options.names):
        began, cpu_began = time.monotonic(), cpu_s()
        text = nbformat.writes(execute(script, options.limit_s)) + "\n"
        size, took = len(text.encode()), time.monotonic() - began
        print(f"{script.stem}: {took:.0f} s ({cpu_s() - cpu_began:.0f} s of CPU), {size / 1000:.0f} kB", flush=True)
        if str(FOLDER.resolve().parent) in text:
            sys.exit(f"{script.stem}: its outputs name a folder of this machine. Print relative paths.")
        if size > MOST_BYTES:
            sys.exit(f"{script.stem}: its notebook has more than {MOST_BYTES:,} bytes. Make its figures smaller.")
        if options.write:
            script.with_suffix(".ipynb").write_text(text)
    print(f"all in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
