"""The PNG: a picture of the stated size, of any pair, that touches no global state."""

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

from sae_lens_crosscoder.diffing import ClassThresholds, PairGeometry, save_png
from sae_lens_crosscoder.errors import SaveError

MakeGeometry = Callable[..., PairGeometry]


def read_png(path: Path) -> torch.Tensor:
    from matplotlib.image import imread

    return torch.tensor(imread(path))


def test_writes_a_picture_of_twelve_by_five_inches(geometry: PairGeometry, tmp_path: Path):
    path = save_png(geometry, tmp_path / "new" / "geometry.png", dpi=50)
    assert path == tmp_path / "new" / "geometry.png"
    picture = read_png(path)
    assert picture.shape[:2] == (250, 600)
    # Blue, green and red bars are there.
    for colour in ("#2f6fb7", "#5b8c5a", "#d1495b"):
        rgb = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert ((picture[..., :3] - rgb).abs().amax(dim=-1) < 0.02).sum() > 20, colour


def test_logarithmic_and_linear_counts_differ(geometry: PairGeometry, tmp_path: Path):
    log = read_png(save_png(geometry, tmp_path / "log.png", dpi=50))
    linear = read_png(save_png(geometry, tmp_path / "linear.png", log_y=False, dpi=50))
    assert not torch.equal(log, linear)


@pytest.mark.parametrize("labels", [("_base", "$\\frac{$"), ("$x$", "a\nb"), ("<b>", "100%")])
def test_labels_that_matplotlib_would_interpret_are_drawn(
    labels: tuple[str, str], tmp_path: Path, make_geometry: MakeGeometry
):
    assert save_png(make_geometry(labels), tmp_path / "x.png", dpi=40).stat().st_size > 1000


def test_pairs_without_cosines_and_without_latents_are_drawn(tmp_path: Path, make_geometry: MakeGeometry):
    drawn = save_png(make_geometry(widths=(16, 8)), tmp_path / "widths.png", dpi=40)
    empty = PairGeometry(("a", "b"), torch.tensor([float("nan")]), None, ["other"], ClassThresholds())
    for path in (drawn, save_png(empty, tmp_path / "empty.png", dpi=40)):
        assert path.stat().st_size > 1000


def test_the_global_state_of_matplotlib_is_left_alone(geometry: PairGeometry, tmp_path: Path):
    before = dict(mpl.rcParams)
    had_pyplot = "matplotlib.pyplot" in sys.modules
    save_png(geometry, tmp_path / "x.png", dpi=40)
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


def test_a_path_that_cannot_be_written_is_an_error_of_ours(geometry: PairGeometry, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(SaveError, match="could not be written"):
        save_png(geometry, tmp_path / "folder", dpi=40)
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
