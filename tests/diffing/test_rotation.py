from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import reference_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from sae_lens_crosscoder.diffing import (
    ReportTable,
    StageRotations,
    rotation,
    rotation_figure,
    write_rotation_report,
)
from sae_lens_crosscoder.diffing.rotation import QUADRANTS, ranks
from sae_lens_crosscoder.errors import ConfigError, ShapeError
from sae_lens_crosscoder.hub import load_crosscoder

STAGES = ("S", "D", "M", "DF", "MF")


def test_a_rotation_is_the_cosine_of_the_whole_row():
    before = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 3.0, 4.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    after = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 5.0], [0.0, 4.0, 3.0], [-3.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    cosines = rotation(before, after)
    torch.testing.assert_close(cosines[:4], torch.tensor([1.0, 0.0, 0.96, -1.0]))
    assert cosines[4].isnan()


def test_scales_bring_both_rows_into_the_units_that_they_were_trained_in():
    # Raw rows (1, 1) and (1, 0); the second source's activations are ten times as large, so its scale is a tenth.
    before, after = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    assert rotation(before, after).item() == pytest.approx(1 / math.sqrt(2))
    assert rotation(before, after, [1, 1], [1.0, 0.1]).item() == pytest.approx(1 / math.sqrt(1.01))
    assert rotation(before, before, [1, 1], [1.0, 0.1], [0.1, 1.0]).item() == pytest.approx(0.2 / 1.01)


def test_scales_of_the_earlier_decoder_alone_hold_for_both():
    before, after = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2)).unbind()
    scales = [0.3, 0.7]
    assert torch.equal(rotation(before, after, [2, 4], scales), rotation(before, after, [2, 4], scales, scales))
    assert not torch.allclose(rotation(before, after, [2, 4], scales), rotation(before, after))


def test_a_rotation_never_leaves_its_range():
    rows = torch.randn(2000, 5, generator=torch.Generator().manual_seed(1))
    assert rotation(rows, 3 * rows).max() <= 1.0
    assert rotation(rows, -3 * rows).min() >= -1.0


def test_half_precision_decoders_are_compared_in_float32():
    before, after = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(0)).bfloat16().unbind()
    cosines = rotation(before, after, [2, 4], [0.3, 0.7])
    assert cosines.dtype == torch.float32
    assert torch.equal(cosines, rotation(before.float(), after.float(), [2, 4], [0.3, 0.7]))
    assert rotation(before, after.double()).dtype == torch.float32


@given(st.integers(0, 10_000))
def test_lengths_and_one_factor_for_all_sources_drop_out(seed: int):
    generator = torch.Generator().manual_seed(seed)
    before, after = torch.randn(2, 6, 7, generator=generator, dtype=torch.float64).unbind()
    lengths = torch.rand(6, 1, generator=generator, dtype=torch.float64) + 0.1
    expected = rotation(before, after)
    torch.testing.assert_close(rotation(before * lengths, after / lengths), expected)
    torch.testing.assert_close(rotation(before, after, [3, 4], [7.0, 7.0], [0.1, 0.1]), expected)
    torch.testing.assert_close(rotation(after, before), expected)


def test_decoders_of_two_dictionaries_and_scales_without_widths_are_refused(unchecked_types: None):
    rows = torch.randn(4, 6)
    with pytest.raises(ShapeError, match=r"\(4, 6\) and \(5, 6\): latents can only be"):
        rotation(rows, torch.randn(5, 6))
    with pytest.raises(ShapeError, match="pass the widths"):
        rotation(rows, rows, None, [1.0, 2.0])
    with pytest.raises(ConfigError, match="scales for the later decoder only"):
        rotation(rows, rows, [2, 4], scales_after=[1.0, 2.0])
    with pytest.raises(ShapeError, match="3 scales for 2 sources"):
        rotation(rows, rows, [2, 4], [1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match="infinite or not a number"):
        rotation(rows, rows / 0)


def picture(**fields: Any) -> StageRotations:
    """Twenty latents; 0 turned with the model, 1 with the data, 2 with both, 19 has no cosine."""
    model, data = torch.linspace(0.9, 0.99, 20), torch.linspace(0.9, 0.99, 20).flip(0)
    model[0], model[1], model[2] = 0.1, 0.98, 0.2
    data[0], data[1], data[2] = 0.97, 0.3, 0.2
    data[19] = torch.nan
    return StageRotations(model, data, **{"percentile": 10.0, **fields})


def test_quadrants_are_named_after_the_stages_at_which_the_steps_begin():
    rotations = picture()
    assert rotations.quadrants[:4] == ["max_change_D", "max_change_M", "max_change_DM", "min_change_DM"]
    assert rotations.quadrants[19] == "undefined"
    assert rotations.counts == {
        "max_change_DM": 1,
        "max_change_M": 1,
        "max_change_D": 1,
        "min_change_DM": 16,
        "undefined": 1,
    }


def test_thresholds_are_percentiles_of_the_latents_that_have_a_cosine():
    model, data = picture(percentile=50.0).thresholds
    assert model == pytest.approx(picture().model_change.median().item(), abs=0.01)
    assert data == pytest.approx(picture().data_change[:19].median().item())


def test_a_percentile_may_be_a_fraction_of_one():
    cosines = torch.linspace(0, 1, 1001)
    model, _ = StageRotations(cosines, cosines, percentile=0.5).thresholds
    assert model == pytest.approx(0.005, abs=1e-4)


def test_a_latent_at_a_threshold_is_not_beyond_it():
    cosines = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    rotations = StageRotations(cosines, cosines, percentile=50.0)
    assert rotations.quadrants == ["max_change_DM"] * 2 + ["min_change_DM"] * 3


def test_the_first_rank_turned_furthest_and_the_joint_rank_asks_for_both():
    rotations = picture()
    assert rotations.model_ranks[[0, 2]].tolist() == [1, 2]
    assert rotations.model_ranks.sort().values.tolist() == list(range(1, 21))
    assert rotations.data_ranks[[2, 1, 19]].tolist() == [1, 2, 20]
    assert rotations.joint_ranks[2] == 1
    assert rotations.joint_ranks[19] == 20
    assert ranks(torch.tensor([3.0, torch.nan, 1.0, 1.0])).tolist() == [3, 4, 1, 2]


def test_the_worse_rank_counts_before_the_sum_of_both():
    # Ranks (1, 4), (3, 3), (2, 1), (4, 2): the worse are 4, 3, 2, 4, and of the two 4 the sum 5 is before 6.
    rotations = StageRotations(torch.tensor([0.1, 0.3, 0.2, 0.4]), torch.tensor([0.4, 0.3, 0.1, 0.2]))
    assert rotations.joint_ranks.tolist() == [3, 2, 1, 4]
    # Ranks (4, 1), (2, 4), (1, 2), (3, 3): the sum decides, and not which of the two ranks is the better one.
    rotations = StageRotations(torch.tensor([0.4, 0.2, 0.1, 0.3]), torch.tensor([0.1, 0.4, 0.2, 0.3]))
    assert rotations.joint_ranks.tolist() == [3, 4, 1, 2]


def test_axes_that_do_not_fit_and_percentiles_that_cannot_be_are_refused(unchecked_types: None):
    with pytest.raises(ShapeError, match="4 and 5 latents"):
        StageRotations(torch.ones(4), torch.ones(5))
    for percentile in (0, 100):
        with pytest.raises(ConfigError, match=f"percentile={percentile} must lie"):
            StageRotations(torch.ones(4), torch.ones(4), percentile=percentile)
    nothing = torch.full((4,), torch.nan)
    for axes, name in (((torch.ones(4), nothing), "data_change"), ((nothing, torch.ones(4)), "model_change")):
        with pytest.raises(ConfigError, match=f"No latent has a cosine in {name}"):
            StageRotations(*axes)


def test_the_report_has_the_picture_the_table_and_every_latent(tmp_path: Path):
    table = ReportTable("<b>first</b>", ["a"], [[1]])
    files = write_rotation_report(picture(), tmp_path / "new", {"causal": [2, 0]}, [table])
    page = files["report"].read_text()
    assert "http-equiv" in page
    assert "&lt;b&gt;first&lt;/b&gt;" in page
    assert page.index("first&lt;") < page.index("turned furthest with both")
    assert files["figure"].read_bytes().startswith(b"\x89PNG")
    with files["latents"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert rows[2]["quadrant"] == "max_change_DM"
    assert float(rows[0]["cosine_d_df"]) == pytest.approx(0.1)
    assert int(rows[2]["joint_rank"]) == 1


def test_every_latent_is_drawn_once_with_its_number_and_marked_ones_get_rings():
    figure = rotation_figure(picture(), {"causal": [2]})
    assert [len(trace.x) for trace in figure.data] == [16, 1, 1, 1, 1]
    assert figure.data[3].hovertext == ("latent 2: 0.200 D→DF, 0.200 M→MF",)
    assert figure.data[4].name == "causal (1)"
    lines = {(shape.x0, shape.y0) for shape in figure.layout.shapes}
    model, data = picture().thresholds
    assert lines == {(model, 0), (0, data)}


# ------------------------------------------------------------------------------ tensors of Soligo & Read's code


def reference() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Its numbers, and the crosscoder of every stage with the scales that are folded into it."""
    folder = reference_checkpoint("stagewise_tinystories")
    tensors = torch.load(folder / "io.pt", weights_only=True)
    return tensors, {stage: load_crosscoder(folder / stage) for stage in STAGES}


@pytest.mark.parametrize(
    "step", [("S", "D"), ("S", "M"), ("S", "DF"), ("S", "MF"), ("D", "DF"), ("M", "MF")], ids="_".join
)
def test_rotations_are_the_references(step: tuple[str, str]):
    tensors, saes = reference()
    before, after = (saes[stage].W_dec.detach() for stage in step)
    cosines = rotation(before, after)
    torch.testing.assert_close(cosines, tensors[f"cos_{step[0]}_{step[1]}"], rtol=1e-5, atol=1e-5)
    # In the units of training: torch's own cosine of the rows times the folded scales.
    scales = [torch.tensor([s["activation_scale"] for s in saes[stage].cfg.metadata.sources]) for stage in step]
    columns = [scale.repeat_interleave(16) for scale in scales]
    expected = F.cosine_similarity(before * columns[0], after * columns[1], dim=-1)
    scaled = rotation(before, after, [16] * 4, scales[0].tolist(), scales[1].tolist())
    torch.testing.assert_close(scaled, expected, rtol=1e-5, atol=1e-5)


def test_quadrants_are_the_references():
    tensors, saes = reference()
    W_dec = {stage: sae.W_dec.detach() for stage, sae in saes.items()}
    rotations = StageRotations(rotation(W_dec["D"], W_dec["DF"]), rotation(W_dec["M"], W_dec["MF"]))
    expected = [QUADRANTS[number] for number in tensors["quadrant_0min_1D_2M_3DM"].tolist()]
    assert rotations.quadrants == expected
    assert set(expected) == set(QUADRANTS)
