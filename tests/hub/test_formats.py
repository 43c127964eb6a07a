"""Every format from its description: variants load with their system's numbers, what no SAE can hold is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_checkpoints import BUILDERS, D, load, sources_of
from foreign_checkpoints import kissane as kissane_checkpoint
from sae_lens import SAE

from sae_lens_crosscoder import JOINT_HOOK_NAME
from sae_lens_crosscoder.errors import CheckpointError, ConfigError, ShapeError, SourceError
from sae_lens_crosscoder.hub import FORMATS, convert, load_crosscoder

pytestmark = pytest.mark.filterwarnings("default:.*does not say whether activation scales:UserWarning")


@pytest.mark.parametrize("name", BUILDERS)
def test_every_format_gives_its_systems_numbers_on_raw_inputs(name: str, tmp_path: Path):
    made = BUILDERS[name](tmp_path)
    sae = load(made)
    made.same_numbers(sae)
    assert sae.cfg.metadata.converted_from["format"] == name
    assert sae.cfg.metadata.hook_name == JOINT_HOOK_NAME
    assert sae.cfg.dtype == "float32"
    assert sources_of(sae).d_in == sae.cfg.d_in


@pytest.mark.parametrize("name", BUILDERS)
def test_a_converted_crosscoder_is_the_same_to_the_last_bit_in_stock_saelens(name: str, tmp_path: Path):
    made = BUILDERS[name](tmp_path / "theirs")
    sae = load(made)
    stock = SAE.load_from_disk(convert(made.folder, tmp_path / "ours", **made.options))
    x = made.x.float()
    assert torch.equal(stock.encode(x), sae.encode(x))
    assert torch.equal(stock(x), sae(x))
    assert stock.cfg.to_dict() == sae.cfg.to_dict()
    # What was converted is a checkpoint like any other.
    again = load_crosscoder(tmp_path / "ours")
    assert torch.equal(again(x), sae(x))
    assert sources_of(again) == sources_of(sae)


def test_every_format_has_a_builder_and_says_what_its_files_are():
    assert set(FORMATS) == {*BUILDERS, "saelens"}
    assert all(checkpoint_format.files for checkpoint_format in FORMATS.values())


def test_the_callers_sources_replace_what_the_checkpoint_says_and_keep_its_widths_and_scales(tmp_path: Path):
    made = kissane_checkpoint(tmp_path)
    sources = sources_of(load(made, sources=[{"model_name": "a"}, {"label": "it", "model_name": "b"}]))
    assert sources.labels == ["base", "it"]
    assert [s.model_name for s in sources] == ["a", "b"]
    assert sources.widths == [D, D]
    assert sources.activation_scales == [0.5, 1.5]
    assert sources_of(load(made, sources=list(sources))) == sources
    with pytest.raises(ConfigError, match="activation_scale comes with the checkpoint"):
        load(made, sources=[source.to_dict() for source in sources])


@pytest.mark.parametrize(
    ("sources", "error", "message"),
    [
        ([{"label": "one"}], SourceError, "2 sources"),
        ([{"lable": "one"}, {}], SourceError, "label"),
        ([{"d_in": D + 1}, {}], ShapeError, "6 wide"),
        ([{"label": "x"}, {"label": "x"}], SourceError, "more than once"),
    ],
)
def test_sources_that_do_not_fit_the_checkpoint_are_refused(
    sources: list[dict[str, Any]], error: type[Exception], message: str, tmp_path: Path
):
    with pytest.raises(error, match=message):
        load(kissane_checkpoint(tmp_path), sources=sources)


@pytest.mark.parametrize("name", ["science-of-finetuning", "antebe", "llamascopium"])
def test_an_option_without_effect_is_refused(name: str, tmp_path: Path):
    made = BUILDERS[name](tmp_path)
    with pytest.raises(ConfigError, match="scales would have no effect"):
        load(made, scales=[1.0, 1.0])
    with pytest.raises(ConfigError, match="Did you mean 'threshold'"):
        load(made, treshold=1.0)


def test_weights_that_overflow_when_folded_are_refused(tmp_path: Path):
    made = kissane_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="overflows in float32"):
        load(made, scales=[1e-39, 1.0])
