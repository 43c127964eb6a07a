"""Makes the pictures of the documentation and of the README, by this package's own plots.

`python docs/make_pictures.py` reads the results of `benchmarks/planted.py` and `benchmarks/step.py`, trains two
crosscoders on a planted pair (seconds), and reads what the tutorials have left in `tutorials/out/` (`make tutorials`
first). Chromium takes the picture of the report. Names of functions below make some of them.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

matplotlib.use("Agg")
ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "tests")]
PICTURES = ROOT / "docs" / "pictures"
MADE = ROOT / "tutorials" / "out"
BLUE, RED, GREEN, GREY = "#4c72b0", "#c44e52", "#55a868", "#8c8c8c"


@contextmanager
def picture(name: str, width: float, height: float) -> Iterator[Axes]:
    """Axes that become a PNG with a white ground, readable in dark pages too."""
    figure, axes = plt.subplots(figsize=(width, height))
    yield axes
    figure.tight_layout()
    figure.savefig(PICTURES / f"{name}.png", dpi=110, facecolor="white")
    plt.close(figure)


def crosscoder() -> None:
    """Two models, one dictionary: what goes in, what comes out."""
    with picture("crosscoder", 7.6, 3.3) as axes:
        axes.set(xlim=(0, 10), ylim=(0, 4.6))
        axes.axis("off")
        boxes = (
            (0.1, 3.0, "base model\nat its hook\nx¹", BLUE),
            (0.1, 0.4, "fine-tuned model\nat its hook\nx²", RED),
            (4.0, 1.7, "latents f\nsparse,\nshared", GREEN),
            (7.8, 3.0, "reconstruction\nof the base model\nΣ fⱼ dⱼ¹", BLUE),
            (7.8, 0.4, "reconstruction\nof the fine-tuned\nΣ fⱼ dⱼ²", RED),
        )
        for x, y, text, colour in boxes:
            axes.add_patch(FancyBboxPatch((x, y), 2.0, 1.2, "round,pad=0.05", ec=colour, fc=colour + "22", lw=1.5))
            axes.text(x + 1.0, y + 0.6, text, ha="center", va="center", fontsize=9)
        for start, end, text in (
            ((2.2, 3.5), (3.95, 2.6), "W_enc¹"),
            ((2.2, 1.1), (3.95, 2.0), "W_enc²"),
            ((6.1, 2.6), (7.7, 3.5), "W_dec¹"),
            ((6.1, 2.0), (7.7, 1.1), "W_dec²"),
        ):
            axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color="#555555"))
            middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.28)
            axes.text(*middle, text, ha="center", fontsize=8.5, color="#333333")


def planted_truth() -> None:
    """What every architecture finds and invents, from the benchmark's results."""
    results = json.loads(sorted((ROOT / "benchmarks" / "results").glob("planted-*.json"))[-1].read_text())
    names = list(dict.fromkeys(row["architecture"] for row in results["rows"]))
    with picture("planted", 7.6, 3.6) as axes:
        for shift, key, colour, text in (
            (-0.2, "recall_exclusive", GREEN, "planted exclusive features that are found"),
            (0.2, "false_exclusive_rate", RED, "exclusive latents that are false"),
        ):
            values = [[row[key] for row in results["rows"] if row["architecture"] == name] for name in names]
            means = [statistics.mean(of_name) for of_name in values]
            spread = [statistics.stdev(of_name) if len(of_name) > 1 else 0.0 for of_name in values]
            places = [i + shift for i in range(len(names))]
            axes.barh(places, means, height=0.38, color=colour, label=text, xerr=spread, ecolor="#444444")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1.02), xlabel="share (mean and deviation over five seeds)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.35, 1.0), ncols=2)


def step_time() -> None:
    """How long a training step takes, and how that grows with the number of latents, from the benchmark's results."""
    results = json.loads(sorted((ROOT / "benchmarks" / "results").glob("step-*.json"))[-1].read_text())
    shape = results["rows"][0]["shape"]
    rows = [row for row in results["rows"] if row["shape"] == shape]
    growth = _growth_in_latents(results["rows"])
    figure, (bars, lines) = plt.subplots(1, 2, figsize=(10.6, 4.2), width_ratios=(1.7, 1))
    names = [row["name"] for row in rows]
    colours = [BLUE if "crosscoder" in name else GREY for name in names]
    bars.barh(names, [row["seconds_median"] for row in rows], color=colours)
    for i, row in enumerate(rows):
        bars.text(row["seconds_median"], i, f"  {row['seconds_median']:.2f} s, {row['speedup']:.1f}x", va="center")
    bars.invert_yaxis()
    bars.set(
        xlim=(0, 1.35 * max(row["seconds_median"] for row in rows)),
        xlabel=f"seconds a step ({results['machine']['n_threads']} threads), times as fast as {names[0]}",
        title=shape,
    )
    for name, points in growth.items():
        colour = BLUE if "crosscoder" in name else RED if name == names[0] else GREY
        lines.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
    lines.set(xscale="log", yscale="log", xlabel="latents F", ylabel="seconds a step", title="growth in F")
    ticks = sorted({n for points in growth.values() for n, _ in points})
    lines.set_xticks(ticks, [f"{n:,}" for n in ticks])
    lines.minorticks_off()
    lines.set_ylim(top=5 * lines.get_ylim()[1])  # room for the legend
    lines.legend(frameon=False, loc="upper left")
    for axes in (bars, lines):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(PICTURES / "step.png", dpi=90, facecolor="white")
    plt.close(figure)


def _growth_in_latents(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Latents and seconds of three contenders, for every F that they were timed with, all else being equal."""
    number = re.compile(r"F (\d+)")
    of_first = number.sub("F", rows[0]["shape"])
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if number.sub("F", row["shape"]) == of_first:
            found = number.search(row["shape"])
            assert found is not None
            points.setdefault(row["name"], []).append((int(found[1]), row["seconds_median"]))
    main = ("SAELens BatchTopK", "sparsify TopK", "batchtopk_crosscoder")
    return {name: sorted(of_name) for name, of_name in points.items() if name in main}


def planted_pair() -> None:
    """The decoder norms of two crosscoders on one planted pair, and latent scaling of the L1 crosscoder's claims."""
    from planted_training import Entry, Plan, planted_run

    from sae_lens_crosscoder import BatchTopKTrainingCrosscoderConfig, StandardTrainingCrosscoderConfig
    from sae_lens_crosscoder.diffing import latent_scaling, save_png

    entries = {
        "l1": Entry("L1", StandardTrainingCrosscoderConfig, {"l1_coefficient": 3.0}, "l1_coefficient"),
        "batchtopk": Entry("BatchTopK", BatchTopKTrainingCrosscoderConfig, {}, "k"),
    }
    runs = {name: planted_run(entry, 0, Plan()) for name, entry in entries.items()}
    judgements = {name: run.judgement() for name, run in runs.items()}
    for name, judgement in judgements.items():
        save_png(judgement.geometry, PICTURES / f"norms-{name}.png", dpi=75)
    run, judgement = runs["l1"], judgements["l1"]
    points: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for model, label in enumerate(run.pair.sources.labels):
        scaling = latent_scaling(run.sae, run.tokens[1].split(2000), label, run.pair.sources)
        for j in judgement.claims[model].nonzero()[:, 0].tolist():
            points[bool(judgement.is_real[j])].append((float(scaling.nu_error[j]), float(scaling.nu_reconstruction[j])))
    with picture("latent-scaling", 5.6, 3.6) as axes:
        for real, colour, text in ((False, RED, "false"), (True, GREEN, "real")):
            axes.scatter(*zip(*points[real], strict=True), s=16, color=colour, label=f"{text} ({len(points[real])})")
        axes.set(xlabel="ν of the error", ylabel="ν of the reconstruction")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)


def patching() -> None:
    """How far latents of the demo's crosscoder bring the base model to the fine-tuned one."""
    from sae_lens_crosscoder.causal import ModelComparison, PatchTest
    from sae_lens_crosscoder.diffing.diff_report import LatentTable
    from sae_lens_crosscoder.model_diff import subject_of_run
    from sae_lens_crosscoder.training.saved_run import SavedRun

    subject = subject_of_run(SavedRun(MADE / "first"), 8192)
    order = LatentTable.load(MADE / "diff").to_pandas().sort_values("kl_attribution", ascending=False)["latent"]
    sets = {f"first {n}": order.head(n).tolist() for n in (1, 3, 10, 30, 100)}
    comparison = ModelComparison(subject.joint, subject.sae, ignored_tokens=subject.excluded_tokens)
    test = PatchTest(comparison, sets)
    for rows in subject.sequences.tokens.split(32):
        test.add(rows)
    effects = {name: groups["all"].gap_closed for name, groups in test.compute().items()}
    names = [*sets, "reconstruction", "full difference"]
    with picture("patching", 5.6, 2.9) as axes:
        axes.bar(names, [effects[name] for name in names], color=[BLUE] * len(sets) + [GREY] * 2)
        axes.set(ylim=(0, 1.05), ylabel="share of the KL gap closed")
        axes.tick_params(axis="x", rotation=25)
        axes.spines[["top", "right"]].set_visible(False)


def stages() -> None:
    """Which latents turn with the model and with the data."""
    from sae_lens_crosscoder.diffing import StageRotations, rotation, save_rotation_png
    from sae_lens_crosscoder.training.saved_run import SavedRun

    folder = MADE / "stages"
    runs = {name: SavedRun(folder / "stages" / name) for name in ("D", "DF", "M", "MF")}

    def turned(before: str, after: str) -> object:
        scales = [runs[name].sources.activation_scales for name in (before, after)]
        return rotation(runs[before].sae.W_dec, runs[after].sae.W_dec, runs[before].sources.widths, *scales)

    causal = json.loads((folder / "metrics.json").read_text())["causal"]
    marked = {f"causal in {name}": found["latents"] for name, found in causal.items()}
    save_rotation_png(
        StageRotations(turned("D", "DF"), turned("M", "MF")),  # pyright: ignore[reportArgumentType]
        PICTURES / "rotation.png",
        marked,
        dpi=80,
    )


def report() -> None:
    """Two pictures of the report of tutorial 2: its overview, and a text on which the models disagree."""
    from chromium import EXECUTABLE, Chromium

    if EXECUTABLE is None:
        sys.exit("There is no Chromium to take the pictures of the report with.")
    page = (MADE / "diff" / "report.html").resolve()
    with tempfile.TemporaryDirectory() as profile:
        browser = Chromium(Path(profile), size=(1180, 640))
        try:
            browser.open(page)
            browser.screenshot(PICTURES / "report.png")
            browser.open(page, "#kl=0")
            browser.point_at('.token[style*="--strength: 1;"]', click=True)  # where the KL is largest
            browser.screenshot(PICTURES / "report-kl.png")
        finally:
            browser.close()


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    makers = {
        make.__name__: make for make in (crosscoder, step_time, planted_truth, planted_pair, patching, stages, report)
    }
    for name in sys.argv[1:] or makers:
        makers[name]()
        print(name)
    for path in sorted(PICTURES.iterdir()):
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
