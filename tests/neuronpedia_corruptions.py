"""Ways in which one line of a good export or payload goes bad, each at a random place of its kind.

A corruption takes the folder of an export and a random generator, and returns the file and the line that it spoils.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

Place = tuple[Path, int]
Corruption = Callable[[Path, random.Random], Place]

ROW_FILES = ("release", "model", "sourceset", "source", "features", "activations")
ARRAYS = {
    "features": ("vector", "pos_values", "neuron_alignment_values", "freq_hist_data_bar_values"),
    "activations": ("values",),
}
TOKENS = {"features": ("pos_str", "neg_str"), "activations": ("tokens",)}
INTEGERS = {"features": ("neuron_alignment_indices", "correlated_neurons_indices")}
TEXTS = {
    "release": ("name", "description", "creatorId"),
    "model": ("owner", "displayName"),
    "sourceset": ("description", "creatorName"),
    "source": ("dataset", "creatorId"),
    "features": ("hookName", "creatorId"),
    "activations": ("creatorId", "id"),
}
REQUIRED = {
    "release": ("name", "description", "creatorName", "creatorId"),
    "model": ("id", "creatorId", "layers", "neuronsPerLayer", "owner"),
    "sourceset": ("modelId", "name", "description", "creatorName", "creatorId"),
    "source": ("id", "modelId", "setName", "creatorId"),
    "features": ("modelId", "layer", "index"),
    "activations": (
        "id",
        "tokens",
        "index",
        "layer",
        "modelId",
        "maxValue",
        "maxValueTokenIndex",
        "minValue",
        "values",
    ),
}
POINTERS = {
    "sourceset": {"modelId": "other-model", "releaseName": "other-release"},
    "source": {"modelId": "other-model", "setName": "other-set", "id": "2-crosscoder-res"},
    "features": {"modelId": "other-model", "layer": "1-other-set", "sourceSetName": "other-set"},
    "activations": {"modelId": "other-model", "layer": "1-other-set", "index": "99999"},
}
NAMES = {
    "model": {"id": ("Tiny Base", "tiny--base", "-tiny", "tiny/base", "")},
    "sourceset": {"name": ("Crosscoder", "cross_coder", "cross--coder", "neurons", "-x")},
    "source": {"id": ("crosscoder-res", "x-crosscoder", "1-Crosscoder", "1-cross--coder", "01-crosscoder-res")},
}


def lines_of(file: Path) -> list[bytes]:
    raw = file.read_bytes()
    return (gzip.decompress(raw) if file.suffix == ".gz" else raw).split(b"\n")[:-1]


def put(file: Path, lines: list[bytes]) -> None:
    raw = b"".join(line + b"\n" for line in lines)
    file.write_bytes(gzip.compress(raw) if file.suffix == ".gz" else raw)


def choose(folder: Path, generator: random.Random, kinds: Any = ROW_FILES) -> tuple[str, Path, list[bytes], int]:
    """A kind of rows, a file of it, its lines, and the number of one of them from 0."""
    kind = generator.choice(list(kinds))
    pattern = f"{kind}/*.jsonl.gz" if kind in ("features", "activations") else f"{kind}.jsonl"
    file = generator.choice(sorted(folder.glob(f"exports/*/*/{pattern}")))
    lines = lines_of(file)
    return kind, file, lines, generator.randrange(len(lines))


def with_row(file: Path, lines: list[bytes], number: int, row: dict[str, Any]) -> Place:
    lines[number] = json.dumps(row).encode()
    put(file, lines)
    return file, number + 1


def in_row(kinds: Any, change: Callable[[str, dict[str, Any], random.Random], None]) -> Corruption:
    def corrupt(folder: Path, generator: random.Random) -> Place:
        kind, file, lines, number = choose(folder, generator, kinds)
        row = json.loads(lines[number])
        change(kind, row, generator)
        return with_row(file, lines, number, row)

    return corrupt


def in_line(change: Callable[[bytes, random.Random], bytes]) -> Corruption:
    def corrupt(folder: Path, generator: random.Random) -> Place:
        _, file, lines, number = choose(folder, generator)
        lines[number] = change(lines[number], generator)
        put(file, lines)
        return file, number + 1

    return corrupt


def in_array(value: Any, arrays: dict[str, tuple[str, ...]]) -> Corruption:
    """One entry of an array that is not empty is replaced, or one is put into an empty array beside its neighbours."""

    def corrupt(folder: Path, generator: random.Random) -> Place:
        while True:
            kind, file, lines, number = choose(folder, generator, arrays)
            row = json.loads(lines[number])
            array = row[generator.choice(arrays[kind])]
            if array:
                array[generator.randrange(len(array))] = value
                return with_row(file, lines, number, row)

    return corrupt


def _wrong_type(kind: str, row: dict[str, Any], generator: random.Random) -> None:
    name = generator.choice([key for key, value in row.items() if value is not None])
    value = row[name]
    if isinstance(value, list):
        row[name] = generator.choice(["text", 3, {}, [[1]]])
    elif isinstance(value, (str, bool)):
        row[name] = generator.choice([1.5, [], {}])
    else:
        row[name] = generator.choice(["1", [], True])


def _remove_required(kind: str, row: dict[str, Any], generator: random.Random) -> None:
    del row[generator.choice(REQUIRED[kind])]


def _null_required(kind: str, row: dict[str, Any], generator: random.Random) -> None:
    row[generator.choice(REQUIRED[kind])] = None


def _unknown_key(kind: str, row: dict[str, Any], generator: random.Random) -> None:
    row[generator.choice(["extra", "Index", "frac-nonzero", ""])] = 1


def _not_finite(kind: str, row: dict[str, Any], generator: random.Random) -> None:
    name = {"features": "maxActApprox", "activations": "minValue"}[kind]
    row[name] = generator.choice([math.nan, math.inf, -math.inf])


def _surrogate(kind: str, row: dict[str, Any], generator: random.Random) -> None:
    name = generator.choice(TEXTS[kind])
    row[name] += generator.choice(["\ud800", "\udfff"])


def _nul(kind: str, row: dict[str, Any], generator: random.Random) -> None:
    row[generator.choice(TEXTS[kind])] += "\0"


def _shorter(kind: str, row: dict[str, Any], generator: random.Random) -> None:
    groups = {
        "features": ("pos_str", "neg_values", "logits_hist_data_bar_heights"),
        "activations": ("tokens", "values"),
    }
    row[generator.choice(groups[kind])].pop()


def _maximum(kind: str, row: dict[str, Any], generator: random.Random) -> None:
    name, change = generator.choice([("maxValue", 0.5), ("minValue", -0.5), ("maxValueTokenIndex", 50)])
    row[name] += change


def _range(kind: str, row: dict[str, Any], generator: random.Random) -> None:
    if kind == "features":
        row["frac_nonzero"] = generator.choice([-0.5, 1.5])
    else:
        row[generator.choice(["qualifyingTokenIndex", "maxValueTokenIndex"])] = generator.choice([-1, 2**31])


def _bad_name(kind: str, row: dict[str, Any], generator: random.Random) -> None:
    ((column, values),) = NAMES[kind].items()
    row[column] = generator.choice(values)


def _pointer(kind: str, row: dict[str, Any], generator: random.Random) -> None:
    column = generator.choice(list(POINTERS[kind]))
    row[column] = POINTERS[kind][column]


def _other_keys(kind: str, row: dict[str, Any], generator: random.Random) -> None:
    if generator.random() < 0.5:
        del row[{"features": "maxActApprox", "activations": "binMin"}[kind]]
    else:
        row[{"features": "vectorLabel", "activations": "dataIndex"}[kind]] = None


def _bad_index(kind: str, row: dict[str, Any], generator: random.Random) -> None:
    row["index"] = generator.choice(["-1", "07", "1.0", "", "one", -1, 2.5])


def _vector(kind: str, row: dict[str, Any], generator: random.Random) -> None:
    row.update(generator.choice([{"hasVector": False}, {"vector": []}, {"hookName": None}, {"sourceSetName": None}]))


def _second_row(folder: Path, generator: random.Random) -> Place:
    _, file, lines, number = choose(folder, generator)
    put(file, [*lines, lines[number]])
    return file, len(lines) + 1


def _id_of_another_source(folder: Path, generator: random.Random) -> Place:
    first, second = sorted(folder.glob("exports/*/*/activations/batch-0.jsonl.gz"))
    lines = lines_of(second)
    number = generator.randrange(len(lines))
    row = {**json.loads(lines[number]), "id": json.loads(lines_of(first)[0])["id"]}
    return with_row(second, lines, number, row)


def _blank_line(folder: Path, generator: random.Random) -> Place:
    _, file, lines, number = choose(folder, generator)
    put(file, [*lines[:number], generator.choice([b"", b"  "]), *lines[number:]])
    return file, number + 1


def _twice(line: bytes, generator: random.Random) -> bytes:
    name, value = generator.choice(list(json.loads(line).items()))
    return line[:-1] + f",{json.dumps(name)}:{json.dumps(value)}}}".encode()


def _bad_byte(line: bytes, generator: random.Random) -> bytes:
    at = generator.randrange(len(line))
    return line[:at] + b"\xff" + line[at:]


def _short_gzip(folder: Path, generator: random.Random) -> Place:
    _, file, _, _ = choose(folder, generator, ("features", "activations"))
    raw = file.read_bytes()[: generator.randrange(20, file.stat().st_size - 8)]
    file.write_bytes(raw)
    # Of the last line that can be unpacked, nobody knows whether it is whole.
    return file, zlib.decompressobj(31).decompress(raw).count(b"\n") + 1


def _missing_file(folder: Path, generator: random.Random) -> Place:
    _, file, _, _ = choose(folder, generator, ("release", "model", "sourceset", "source"))
    file.unlink()
    return file, 0


def _empty_file(folder: Path, generator: random.Random) -> Place:
    _, file, _, _ = choose(folder, generator)
    put(file, [])
    return file, 0


def _plain_file(folder: Path, generator: random.Random) -> Place:
    _, file, lines, _ = choose(folder, generator, ("features", "activations"))
    plain = file.with_name("batch-9.jsonl")
    put(plain, lines)
    return plain, 0


def in_payload(change: Callable[[dict[str, Any], random.Random], None]) -> Corruption:
    """One latent of a payload, which is one line of our own payloads."""

    def corrupt(folder: Path, generator: random.Random) -> Place:
        file = generator.choice(sorted(folder.glob("payloads/*/*/payload-*.json")))
        lines = lines_of(file)
        number = generator.randrange(1, len(lines) - 1)
        feature = json.loads(lines[number].rstrip(b","))
        change(feature, generator)
        comma = b"," if lines[number].endswith(b",") else b""
        lines[number] = json.dumps(feature).encode() + comma
        put(file, lines)
        return file, number + 1

    return corrupt


def _payload_entry(name: str, value: Any) -> Corruption:
    def change(feature: dict[str, Any], generator: random.Random) -> None:
        array = generator.choice(feature["activations"])[name]
        array[generator.randrange(len(array))] = value

    return in_payload(change)


def _payload_window(change: Callable[[dict[str, Any]], None]) -> Corruption:
    return in_payload(lambda feature, generator: change(generator.choice(feature["activations"])))


def _payload_line(change: Callable[[bytes, random.Random], bytes]) -> Corruption:
    def corrupt(folder: Path, generator: random.Random) -> Place:
        file = generator.choice(sorted(folder.glob("payloads/*/*/payload-*.json")))
        lines = lines_of(file)
        number = generator.randrange(1, len(lines) - 1)
        comma = b"," if lines[number].endswith(b",") else b""
        lines[number] = change(lines[number].rstrip(b","), generator) + comma
        put(file, lines)
        return file, number + 1

    return corrupt


def _payload_head(change: dict[str, Any]) -> Corruption:
    def corrupt(folder: Path, generator: random.Random) -> Place:
        file = generator.choice(sorted(folder.glob("payloads/*/*/payload-*.json")))
        payload = {**json.loads(file.read_bytes()), **change}
        file.write_text(json.dumps(payload))
        return file, 1

    return corrupt


def _second_latent(folder: Path, generator: random.Random) -> Place:
    file = generator.choice(sorted(folder.glob("payloads/*/*/payload-*.json")))
    lines = lines_of(file)
    lines[-2:] = [lines[-2] + b",", lines[generator.randrange(1, len(lines) - 1)].rstrip(b","), lines[-1]]
    put(file, lines)
    return file, len(lines) - 1


EXPORT: dict[str, Corruption] = {
    "a value of another type": in_row(ROW_FILES, _wrong_type),
    "a required key is missing": in_row(ROW_FILES, _remove_required),
    "a required key is null": in_row(ROW_FILES, _null_required),
    "an unknown key": in_row(ROW_FILES, _unknown_key),
    "NaN or infinity": in_row(("features", "activations"), _not_finite),
    "NaN in an array": in_array(math.nan, ARRAYS),
    "infinity in an array": in_array(-math.inf, ARRAYS),
    "null in an array": in_array(None, {**ARRAYS, "activations": ("tokens", "values")}),
    "half a character in a text": in_row(TEXTS, _surrogate),
    "half a character in a token": in_array(
        "a\ud83d", {"features": ("pos_str", "neg_str"), "activations": ("tokens",)}
    ),
    "an empty token": in_array("", TOKENS),
    "a NUL in a text": in_row(TEXTS, _nul),
    "a NUL in a token": in_array("a\0b", {"activations": ("tokens",)}),
    "the word u0000 behind a backslash": in_array("\\u0000", {"activations": ("tokens",)}),
    "a fraction among integers": in_array(1.5, INTEGERS),
    "a whole float among integers": in_array(3.0, INTEGERS),
    "an integer beyond 32 bits": in_array(2**31, INTEGERS),
    "a number beyond all floats": in_array(10**400, ARRAYS),
    "text among numbers": in_array("1.5", ARRAYS),
    "arrays of different length": in_row(("features", "activations"), _shorter),
    "extremes that are not those of the values": in_row(("activations",), _maximum),
    "a number out of range": in_row(("features", "activations"), _range),
    "a bad name": in_row(NAMES, _bad_name),
    "a bad index": in_row(("features", "activations"), _bad_index),
    "a pointer to nothing": in_row(POINTERS, _pointer),
    "other keys than line 1": in_row(("features", "activations"), _other_keys),
    "a vector that cannot steer": in_row(("features",), _vector),
    "a row that stands twice": _second_row,
    "an id of another source": _id_of_another_source,
    "a blank line": _blank_line,
    "a line that breaks off": in_line(lambda line, generator: line[: generator.randrange(1, len(line))]),
    "a byte that is no UTF-8": in_line(_bad_byte),
    "a key that stands twice": in_line(_twice),
    "a line that is no object": in_line(lambda line, generator: generator.choice([b"[]", b"null", b"3", b'"a"'])),
    "a comma behind the line": in_line(lambda line, generator: line + b","),
    "a gzip file that breaks off": _short_gzip,
    "a missing file": _missing_file,
    "an empty file": _empty_file,
    "rows that are not gzipped": _plain_file,
}

PAYLOADS: dict[str, Corruption] = {
    "NaN among the values of a payload": _payload_entry("values", math.nan),
    "null among the values of a payload": _payload_entry("values", None),
    "an empty token in a payload": _payload_entry("tokens", ""),
    "null among the tokens of a payload": _payload_entry("tokens", None),
    "half a character in a payload": _payload_entry("tokens", "\udc00"),
    "a window of different lengths": _payload_window(lambda window: window["tokens"].pop()),
    "a window without tokens": _payload_window(lambda window: window.update(tokens=[], values=[])),
    "a window of 1,025 tokens": _payload_window(lambda window: window.update(tokens=["a"] * 1025, values=[1.0] * 1025)),
    "a share of -1": _payload_window(lambda window: window.update(quantileFraction=-1)),
    "a latent without windows": in_payload(lambda feature, _: feature.update(activations=[])),
    "a latent without its windows' key": in_payload(lambda feature, _: feature.pop("activations")),
    "a density above 1": in_payload(lambda feature, _: feature.update(density=1.5)),
    "a density of null": in_payload(lambda feature, _: feature.update(density=None)),
    "an index below 0": in_payload(lambda feature, _: feature.update(index=-1)),
    "an index above 10,000,000": in_payload(lambda feature, _: feature.update(index=10_000_001)),
    "21 logits": in_payload(lambda feature, _: feature.update(topLogits=[{"token": "a", "value": 1.0}] * 21)),
    "a logit without a value": in_payload(lambda feature, _: feature["bottomLogits"][0].pop("value")),
    "an unknown key in a payload": in_payload(lambda feature, _: feature.update(vector=[1.0])),
    "a key of a payload twice": _payload_line(_twice),
    "a payload with a bad byte": _payload_line(_bad_byte),
    "a latent of a payload twice": _second_latent,
    "a payload of no model": _payload_head({"modelId": "Tiny Base"}),
    "a payload with a suffix": _payload_head({"source": "1-crosscoder-res__x"}),
    "a payload of no latents": _payload_head({"features": []}),
    "a payload of 129 latents": _payload_head({"features": [{}] * 129}),
}
