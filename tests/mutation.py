"""Mutation tests in one pytest session: a mutant costs a fork and the tests that reach it.

    PYTHONPATH=tests python -m pytest -q -s -p mutation --mutate sae_lens_crosscoder/diffing/geometry.py tests/diffing

The mutants are mutmut's. Its own runner starts pytest anew for every mutant in a process that has imported the package,
where jaxtyping's check of signatures can no longer be installed, and it leaves out decorated functions and properties.
Here a function's code is exchanged in a forked child. Texts of errors, annotations, defaults of parameters and fields,
and module constants are not mutated. Needs os.fork and Python 3.11.
"""

from __future__ import annotations

import difflib
import gc
import json
import os
import pickle
import re
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import CodeType, FunctionType

import libcst
import pytest
from _pytest.runner import runtestprotocol
from hypothesis import Phase, settings
from libcst.metadata import MetadataWrapper
from mutmut.mutation.file_mutation import MutationVisitor
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

_N_EXAMPLES = 12  # of hypothesis: a mutant that needs more is hardly seen by the test
_LONGER = 10  # a test that takes so many times as long as without a mutant hangs

FunctionKey = tuple[str, str, int]
"""File, qualified name, and which of the functions of this name."""


@dataclass(frozen=True)
class Mutant:
    file: str
    function: str
    diff: str
    codes: dict[FunctionKey, CodeType]
    """The functions that differ, with their mutated code."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mutation")
    group.addoption("--mutate", action="append", default=[], help="a source file; may be given again")
    group.addoption("--mutate-functions", default="", help="regular expression that qualified names must match")
    group.addoption("--mutation-report", default="mutation.jsonl", help="is written: one line of JSON a mutant")
    group.addoption(
        "--mutation-again", action="append", default=[], help="a former report: of its files only survivors"
    )
    group.addoption("--mutation-step", type=int, default=1, help="of other files every n-th mutant")


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.getoption("mutate"):
        return
    quick = {"max_examples": _N_EXAMPLES, "phases": (Phase.explicit, Phase.generate)}  # a failure is not shrunk
    settings.register_profile("mutation", settings.default, **quick)
    settings.load_profile("mutation")
    for item in session.items:
        test = getattr(item, "obj", None)
        own = getattr(test, "_hypothesis_internal_use_settings", None)
        if own is not None:
            quick["max_examples"] = min(_N_EXAMPLES, own.max_examples)
            test._hypothesis_internal_use_settings = settings(own, **quick)


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    config = session.config
    files = [Path(name).resolve() for name in config.getoption("mutate")]
    if not files or config.option.collectonly:
        return None
    reaching = _reaching(session.items, {str(file) for file in files})
    live = _live_functions({str(file) for file in files})
    survivors = _survivors(config.getoption("mutation_again"))
    with Path(config.getoption("mutation_report")).open("w") as report:
        for file in files:
            counts: Counter[str] = Counter()
            chosen = (m for m in _mutants(file) if re.search(config.getoption("mutate_functions"), m.function))
            if file.name in survivors:
                chosen = (mutant for mutant in chosen if mutant.diff in survivors[file.name])
            else:
                chosen = islice(chosen, 0, None, config.getoption("mutation_step"))
            for mutant in chosen:
                tests = {test for file_, name, _ in mutant.codes for test in reaching.get((file_, name), ())}
                status, by = _outcome(session.items, sorted(tests), mutant, live) if tests else ("no test", "")
                counts[status] += 1
                row = {
                    "file": mutant.file,
                    "function": mutant.function,
                    "status": status,
                    "by": by,
                    "diff": mutant.diff,
                }
                report.write(json.dumps(row) + "\n")
                report.flush()
                if status in ("survived", "no test"):
                    print(f"{mutant.file} {mutant.function}: {status}\n{mutant.diff}", flush=True)
            print(f"{file.name}: {counts.total()} mutants, {dict(counts)}", flush=True)
    return True


def _survivors(reports: list[str]) -> dict[str, set[str]]:
    """By file, the mutants that no test has killed."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in (json.loads(line) for report in reports for line in Path(report).read_text().splitlines()):
        found[row["file"]] |= {row["diff"]} if row["status"] in ("survived", "no test") else set()
    return found


class _Visitor(MutationVisitor):
    """All of mutmut's mutants, those of decorated functions too, without those of the texts of errors."""

    def __init__(self) -> None:
        super().__init__(mutation_operators, IgnoredCode(set(), set(), set()))
        self._texts: set[int] = set()

    def on_visit(self, node: libcst.CSTNode) -> bool:
        if isinstance(node, libcst.Raise):
            self._texts |= {id(text) for text in _below(node) if isinstance(text, libcst.SimpleString)}
        return super().on_visit(node)

    def _should_mutate_node(self, node: libcst.CSTNode) -> bool:
        return id(node) not in self._texts and super()._should_mutate_node(node)

    def _skip_node_and_children(self, node: libcst.CSTNode) -> bool:
        return not isinstance(node, libcst.FunctionDef) and super()._skip_node_and_children(node)


def _below(node: libcst.CSTNode) -> Iterator[libcst.CSTNode]:
    yield node
    for child in node.children:
        yield from _below(child)


def _mutants(file: Path) -> Iterator[Mutant]:
    """Every mutant that changes what a function does, once."""
    source = file.read_text()
    visitor = _Visitor()
    module = MetadataWrapper(libcst.parse_module(source)).visit(visitor)
    before = _functions(file, source)
    seen: set[str] = set()
    for mutation in visitor.mutations:
        mutated = module.deep_replace(mutation.original_node, mutation.mutated_node).code
        if mutated in seen:
            continue
        seen.add(mutated)
        try:
            after = _functions(file, mutated)
        except SyntaxError:
            continue
        codes = {key: after[key] for key in before if key in after and _meaning(before[key]) != _meaning(after[key])}
        # A function that lost or gained a variable of an outer one, such as the class of super(), cannot be exchanged.
        if codes and all(code.co_freevars == before[key].co_freevars for key, code in codes.items()):
            lines = difflib.unified_diff(source.splitlines(), mutated.splitlines(), lineterm="", n=0)
            yield Mutant(
                file.name, next(iter(codes))[1], "\n".join(line for line in [*lines][2:] if line[:2] != "@@"), codes
            )


def _functions(file: Path, source: str) -> dict[FunctionKey, CodeType]:
    """The functions of a module and of its classes, without those inside functions."""
    found: dict[FunctionKey, CodeType] = {}
    blocks = [compile(source, str(file), "exec", dont_inherit=True)]
    while blocks:
        for code in blocks.pop().co_consts:
            if isinstance(code, CodeType) and not code.co_name.startswith("<"):
                is_function = code.co_flags & 2  # it has names of its own, and a class body has not
                if not is_function:
                    blocks.append(code)
                    continue
                n = sum(key[1] == code.co_qualname for key in found)
                found[str(file), code.co_qualname, n] = code
    return found


def _meaning(code: CodeType) -> tuple[object, ...]:
    """What a function does, without where its lines stand."""
    consts = tuple(_meaning(const) if isinstance(const, CodeType) else repr(const) for const in code.co_consts)
    return (code.co_code, code.co_names, code.co_varnames, code.co_freevars, consts)


def _live_functions(files: set[str]) -> dict[FunctionKey, list[FunctionType]]:
    """The functions of this process, whatever decorators they are behind."""
    lines: dict[tuple[str, str], dict[int, list[FunctionType]]] = defaultdict(lambda: defaultdict(list))
    for function in gc.get_objects():
        # Not isinstance: some of torch's objects warn when they are asked for their class.
        if type(function) is FunctionType and function.__code__.co_filename in files:
            code = function.__code__
            lines[code.co_filename, code.co_qualname][code.co_firstlineno].append(function)
    return {
        (file, name, n): by_line[line]
        for (file, name), by_line in lines.items()
        for n, line in enumerate(sorted(by_line))
    }


def _reaching(items: list[pytest.Item], files: set[str]) -> dict[tuple[str, str], list[tuple[float, int]]]:
    """By file and function the tests that enter it: seconds and number.

    They run in a child, so that this process stays as collecting has left it.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        entered: set[tuple[str, str]] = set()

        def note(frame, event, argument):
            if event == "call" and frame.f_code.co_filename in files:
                entered.add((frame.f_code.co_filename, frame.f_code.co_qualname.split(".<locals>")[0]))

        reaching: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
        for i, (item, following) in enumerate(zip(items, [*items[1:], None], strict=True)):
            entered.clear()
            begun = time.monotonic()
            sys.setprofile(note)
            reports = runtestprotocol(item, log=False, nextitem=following)
            sys.setprofile(None)
            if any(report.failed for report in reports):
                print(f"left out, it fails without a mutant: {item.nodeid}\n{reports}", flush=True)
                continue
            for key in entered:
                reaching[key].append((time.monotonic() - begun, i))
        with os.fdopen(write, "wb") as stream:
            pickle.dump(dict(reaching), stream)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        reaching = pickle.load(stream)
    os.waitpid(pid, 0)
    return reaching


def _outcome(
    items: list[pytest.Item],
    tests: list[tuple[float, int]],
    mutant: Mutant,
    live: dict[FunctionKey, list[FunctionType]],
) -> tuple[str, str]:
    """ "killed" and by which test, "timeout", or "survived"."""
    read, write = os.pipe()
    limit = int(10 + _LONGER * sum(seconds for seconds, _ in tests))
    pid = os.fork()
    if pid == 0:
        _run_mutant([items[i] for _, i in tests], mutant, live, write, limit)
    os.close(write)
    deadline = time.monotonic() + 5 * limit
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, 9)
        time.sleep(0.002)
    with os.fdopen(read) as stream:
        by = stream.read()
    code = os.waitstatus_to_exitcode(done[1])
    return ("survived" if code == 0 else "timeout" if code in (-24, -9) else "killed"), by


def _run_mutant(
    items: list[pytest.Item],
    mutant: Mutant,
    live: dict[FunctionKey, list[FunctionType]],
    write: int,
    limit: int,
) -> None:
    """Run the tests until one fails, and end the process."""
    status = 2
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        for key, code in mutant.codes.items():
            for function in live.get(key, ()):
                function.__code__ = code
        status = 0
        for item, following in zip(items, [*items[1:], None], strict=True):
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
                os.write(write, item.name.encode())
                status = 1
                break
    finally:
        os._exit(status)
