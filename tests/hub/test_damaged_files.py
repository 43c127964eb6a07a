"""Damaged and hostile checkpoints of every format: a clear error each, never a wrong crosscoder.

Every change either is refused with one of our errors, or says nothing about the crosscoder, so that what loads is the
intact one to the last bit. Flipped bits of safetensors data are left out: nothing in the file tells them.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from foreign_checkpoints import BUILDERS, Crosscode, DictionaryLearning, Foreign, Llamascopium, antebe, difference_sae
from foreign_checkpoints import load as load_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sae_lens_crosscoder.errors import CrosscoderError
from sae_lens_crosscoder.hub import convert, load_crosscoder
from sae_lens_crosscoder.manifest import MANIFEST_FILENAME

N_CASES = 100
"""For each of eleven checkpoints."""

JUNK = [None, math.nan, math.inf, -1, 0, "x", "", [], {}, True, [[]], "\u0000", {"a": None}]


def published(folder: Path) -> Foreign:
    """A converted crosscoder, which has a manifest as a published one has."""
    theirs = BUILDERS["kissane"](folder / "theirs")
    out = convert(theirs.folder, folder / "ours", **theirs.options)
    return Foreign(out, theirs.x, theirs.codes, theirs.reconstructions)


CHECKPOINTS: dict[str, Callable[[Path], Foreign]] = {
    **{name: BUILDERS[name] for name in ("kissane", "nanda", "openinterp", "crosscoder-through-time")},
    "stagewise-tinystories": BUILDERS["stagewise-tinystories"],
    "science-of-finetuning": lambda folder: DictionaryLearning(
        "SAE", normalised=True, config={"dict_class": "BatchTopKCrossCoder", "k": 4}
    ).write(folder),
    "science-of-finetuning-diff-sae": difference_sae,
    "crosscode": lambda folder: Crosscode("TopkActivation").write(folder),
    "antebe": antebe,
    "llamascopium": lambda folder: Llamascopium("jumprelu", equal_norms=True).write(folder),
    "saelens": published,
}


class Intact:
    """The undamaged checkpoint: its files, and the weights that it loads as."""

    def __init__(self, folder: Path, name: str) -> None:
        self.made = CHECKPOINTS[name](folder / "intact")
        self.folder, self.damaged = self.made.folder, folder / "damaged"
        self.state = load_checkpoint(self.made).state_dict()
        files = sorted(path for path in self.folder.iterdir() if path.name != MANIFEST_FILENAME)
        self.weights = next(path for path in files if path.suffix in (".pt", ".safetensors"))
        self.config = next(path for path in files if path.suffix in (".json", ".yaml"))
        self.is_archive = self.weights.suffix == ".pt"
        self.tensors = torch.load(self.weights, weights_only=True) if self.is_archive else load_file(self.weights)
        text = self.config.read_text()
        self.values = yaml.unsafe_load(text) if self.config.suffix == ".yaml" else json.loads(text)
        self.n_refused = 0

    def restore(self) -> None:
        shutil.rmtree(self.damaged, ignore_errors=True)
        shutil.copytree(self.folder, self.damaged)

    def write_weights(self, tensors: dict[str, Any]) -> None:
        path = self.damaged / self.weights.name
        if self.is_archive:
            torch.save(tensors, path)
        else:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)

    def write_config(self, values: dict[str, Any]) -> None:
        text = yaml.dump(values) if self.config.suffix == ".yaml" else json.dumps(values)
        (self.damaged / self.config.name).write_text(text)

    def check(self, what: str) -> None:
        """The damaged checkpoint is refused by an error of ours, or is the intact crosscoder."""
        try:
            sae = load_crosscoder(self.damaged, **self.made.options)
        except CrosscoderError:
            self.n_refused += 1
            return
        state = sae.state_dict()
        assert state.keys() == self.state.keys(), what
        assert all(torch.equal(state[name], tensor) for name, tensor in self.state.items()), what


def truncated(intact: Intact, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([intact.weights, intact.config]))
    content = path.read_bytes()
    (intact.damaged / path.name).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])


def bits_flipped(intact: Intact, data: st.DataObject) -> None:
    content = bytearray(intact.weights.read_bytes())
    # Without a checksum only the header can tell.
    has_checksum = intact.is_archive or (intact.folder / MANIFEST_FILENAME).is_file()
    end = len(content) if has_checksum else 8 + struct.unpack("<Q", content[:8])[0]
    for position in data.draw(st.lists(st.integers(0, end - 1), min_size=1, max_size=4)):
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    (intact.damaged / intact.weights.name).write_bytes(content)


def shape_changed(intact: Intact, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(intact.tensors)))
    tensor = intact.tensors[name]
    change = data.draw(st.sampled_from(["empty", "cut", "longer", "one more dimension", "flat", "transposed"]))
    last = tensor if tensor.ndim else tensor[None]
    changed = {
        "empty": lambda: last[..., :0],
        "cut": lambda: last[..., :-1],
        "longer": lambda: torch.cat([last, last[..., -1:]], dim=-1),
        "one more dimension": lambda: tensor[None],
        "flat": lambda: tensor.flatten(),
        "transposed": lambda: tensor.permute(*reversed(range(tensor.ndim))) if tensor.ndim else last,
    }[change]()
    intact.write_weights({**intact.tensors, name: changed.clone()})


def numbers_made_impossible(intact: Intact, data: st.DataObject) -> None:
    floating = sorted(name for name, tensor in intact.tensors.items() if tensor.is_floating_point())
    name = data.draw(st.sampled_from(floating))
    changed = intact.tensors[name].clone(memory_format=torch.contiguous_format)
    place = data.draw(st.integers(0, changed.numel() - 1))
    changed.view(-1)[place] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    intact.write_weights({**intact.tensors, name: changed})


def dtype_changed(intact: Intact, data: st.DataObject) -> None:
    floating = sorted(name for name, tensor in intact.tensors.items() if tensor.is_floating_point())
    name = data.draw(st.sampled_from(floating))
    dtype = data.draw(st.sampled_from([torch.int64, torch.int8, torch.bool, torch.uint8]))
    intact.write_weights({**intact.tensors, name: intact.tensors[name].to(dtype)})


def tensor_dropped(intact: Intact, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(intact.tensors)))
    intact.write_weights({other: tensor for other, tensor in intact.tensors.items() if other != name})


def tensor_added(intact: Intact, data: st.DataObject) -> None:
    new = ["W_skip", "encoder.weight", "x.W_enc", "W_E", "gate", "module.b_dec", "threshold", "enc_mask", "b_enc_L"]
    name = data.draw(st.sampled_from([name for name in new if name not in intact.tensors]))
    intact.write_weights({**intact.tensors, name: torch.ones(data.draw(st.integers(1, 7)))})


def tensor_renamed(intact: Intact, data: st.DataObject) -> None:
    old = data.draw(st.sampled_from(sorted(intact.tensors)))
    new = data.draw(st.sampled_from([old.upper(), f"{old}_2", f" {old}", old[1:], "é", f"x.{old}"]))
    intact.write_weights({new if name == old else name: tensor for name, tensor in intact.tensors.items()})


def config_value_replaced(intact: Intact, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(intact.values)))
    intact.write_config({**intact.values, key: data.draw(st.sampled_from(JUNK))})


def config_value_dropped(intact: Intact, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(intact.values)))
    intact.write_config({name: value for name, value in intact.values.items() if name != key})


def file_missing(intact: Intact, data: st.DataObject) -> None:
    (intact.damaged / data.draw(st.sampled_from([intact.weights, intact.config])).name).unlink()


def hostile(intact: Intact, data: st.DataObject) -> None:
    class RunsCode:
        def __reduce__(self) -> Any:
            return os._exit, (3,)

    path = intact.damaged / intact.weights.name
    content = {**intact.tensors, data.draw(st.sampled_from(sorted(intact.tensors))): RunsCode()}
    torch.save(content, path, _use_new_zipfile_serialization=data.draw(st.booleans()))


CHANGES = [
    truncated,
    bits_flipped,
    shape_changed,
    numbers_made_impossible,
    dtype_changed,
    tensor_dropped,
    tensor_added,
    tensor_renamed,
    config_value_replaced,
    config_value_dropped,
    file_missing,
    hostile,
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_damaged_checkpoint_is_refused_or_is_the_intact_one(name: str, tmp_path: Path):
    intact = Intact(tmp_path, name)

    @settings(max_examples=N_CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def damage(data: st.DataObject) -> None:
        change = data.draw(st.sampled_from(CHANGES))
        intact.restore()
        change(intact, data)
        intact.check(change.__name__)

    damage()
    assert intact.n_refused > N_CASES / 2
