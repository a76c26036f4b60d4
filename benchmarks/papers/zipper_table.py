"""Table and plot of the zipper's runs: what each number of merged blocks costs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.papers.figures import per_cent, save_results, table

Model = dict[str, Any]  # the figures of one merged model, with its variant and seed
NAMES = {
    "outputs": "zipper, by outputs",
    "filter": "zipper, aligned by filters",
    "score": "zipper, aligned by scores",
    "unaligned": "zipper, not aligned",
    "naive": "naive",
    "further": "zipper, calibrated further",
    "naive-further": "naive, calibrated further",
}
MAIN = "outputs"
SETS = ("audiomnist", "ravdess", "speechocean")
COMPARED = (4, 8, 10, 12)
# colour-blind safe (Okabe & Ito 2008)
COLOURS = {
    "outputs": "#56B4E9",
    "filter": "#0072B2",
    "score": "#009E73",
    "unaligned": "#E69F00",
    "naive": "#D55E00",
    "further": "#CC79A7",
    "naive-further": "#E69F00",
}
MARKS = {
    "outputs": "v",
    "filter": "o",
    "score": "s",
    "unaligned": "^",
    "naive": "X",
    "further": "D",
    "naive-further": "P",
}


def summarise(folder: Path) -> str:
    """The runs in ``folder`` as Markdown; also writes ``zipper.json``, ``.md`` and ``.png``."""
    models = read_models(folder)
    start = next((m for m in models if m["blocks"] == 0), None)
    if start is None:
        return f"no run in {folder} has evaluated the originals"
    merged = [m for m in models if m["blocks"] > 0]
    lost = drops(start, merged)
    main = [m for m in merged if m["variant"] == MAIN]
    seed = min((m["seed"] for m in main), default=0)
    main = [m for m in main if m["seed"] == seed]
    text = "\n\n".join((paper_table(start, lost), sequence_table([start, *main]), drop_table(lost)))
    save_results(folder / "zipper.json", {"paper": "004", "drops": lost})
    (folder / "zipper.md").write_text(text + "\n")
    plot([start, *main], merged, folder / "zipper.png")
    return text


def read_models(folder: Path) -> list[Model]:
    """The evaluated models of all runs, by blocks."""
    found = []
    for path in sorted(folder.glob("zipper*.json")):
        if re.fullmatch(r"zipper(-[a-z]+)*-seed\d+\.json", path.name):
            run = json.loads(path.read_text())
            about = {"variant": run["variant"], "seed": run["seed"]}
            found += [about | model for model in run["models"] if "face" in model]
    return sorted(found, key=lambda model: int(model["blocks"]))


def face_accuracy(model: Model) -> float:
    """LFW accuracy in per cent."""
    return 100 * float(model["face"]["accuracy"]["value"])


def voice_error(model: Model) -> float:
    """Mean equal error rate of the three sets in per cent."""
    return 100 * float(model["voice"]["mean_eer"])


def drop(start: Model, model: Model) -> dict[str, float]:
    """Points lost against the originals: of face accuracy, of voice (rise of the mean EER),
    and the mean of both."""
    face = face_accuracy(start) - face_accuracy(model)
    voice = voice_error(model) - voice_error(start)
    return {"face": face, "voice": voice, "mean": (face + voice) / 2}


def drops(start: Model, merged: list[Model]) -> list[dict[str, Any]]:
    """For each variant and number of blocks: mean and spread (deviation) over the seeds."""
    found = []
    for variant in NAMES:
        for blocks in range(1, 13):
            chosen = [m for m in merged if m["variant"] == variant and m["blocks"] == blocks]
            lost = [drop(start, model) for model in chosen]
            if not lost:
                continue
            row: dict[str, Any] = {"variant": variant, "blocks": blocks, "seeds": len(lost)}
            for key in ("face", "voice", "mean"):
                values = [one[key] for one in lost]
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
                row[key] = {"mean": float(np.mean(values)), "spread": spread, "values": values}
            found.append(row)
    return found


def paper_table(start: Model, lost: list[dict[str, Any]]) -> str:
    """Ours beside paper 004: section IV-B and, for the drop, Figure 5."""
    at_end = {row["variant"]: row["mean"] for row in lost if row["blocks"] == 12}

    def shown(variant: str) -> str:
        return f"{at_end[variant]['mean']:+.2f}" if variant in at_end else "not measured"

    rows = [
        ["face accuracy before merging, %", "99.2", per_cent(start["face"]["accuracy"])],
        ["voice error before merging, %", "HTER 1.86", f"mean EER {voice_error(start):.2f}"],
        ["mean drop at 12 blocks, points", "< 3", shown("filter")],
        ["the same, by outputs", "-", shown("outputs")],
        ["the same, naive", "no number; better face, worse voice", shown("naive")],
        ["the same, calibrated further", "-", shown("further")],
        ["naive, calibrated further", "-", shown("naive-further")],
    ]
    return table(["", "paper", "ours"], rows)


def drop_table(lost: list[dict[str, Any]]) -> str:
    """Points lost at the numbers of blocks where there is something to compare."""
    rows = []
    for row in lost:
        if row["blocks"] in COMPARED:
            cells = [NAMES[row["variant"]], row["blocks"], row["seeds"]]
            for key in ("face", "voice", "mean"):
                spread = row[key]["spread"]
                deviation = "" if spread is None else f" ± {spread:.2f}"
                cells.append(f"{row[key]['mean']:+.2f}{deviation}")
            rows.append(cells)
    return table(
        ["variant", "blocks", "seeds", "face drop, points", "voice drop", "mean drop"], rows
    )


def sequence_table(models: list[Model]) -> str:
    """Every model of a sequence: size, work, accuracy with intervals."""
    start = models[0]
    rows = []
    for model in models:
        rows.append(
            [
                model["blocks"],
                f"{model['weights'] / 1e6:.2f} M",
                f"{model['bytes'] / 1e6:.2f} MB",
                f"{start['bytes'] / model['bytes']:.2f}x",
                f"{sum(model['macs'].values()) / 1e6:.0f} M",
                " + ".join(f"{model['cpu_milliseconds'][e]:.1f}" for e in ("face", "voice")),
                per_cent(model["face"]["accuracy"]),
                *[per_cent(model["voice"][name]["eer"]) for name in SETS],
                f"{drop(start, model)['mean']:+.2f}",
            ]
        )
    head = ["blocks", "weights", "file", "smaller", "multiply-adds", "ms, face + voice"]
    head += ["face accuracy, %", *[f"{name} EER, %" for name in SETS], "mean drop, points"]
    return table(head, rows)


def plot(main: list[Model], merged: list[Model], path: Path) -> None:
    """Accuracy against merged blocks (all runs), and against size (one sequence)."""
    figure = Figure(figsize=(11, 7.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharey="row")
    for row, (value, what, label) in enumerate(
        (
            (face_accuracy, "faces, LFW folds 4 and 5", "accuracy, %"),
            (voice_error, "voices, mean of three sets", "equal error rate, %"),
        )
    ):
        left, right = axes[row]
        _lines(left, main[0], merged, value)
        left.set(title=what, xlabel="merged blocks", ylabel=label, xticks=range(13))
        _sizes(right, main, value)
        right.set(title=f"{what}, by size", xlabel="file, MB (float32; smaller to the right)")
        right.invert_xaxis()
        for one in (left, right):
            one.axhline(value(main[0]), color="0.6", linewidth=0.8, linestyle="--", zorder=1)
            one.grid(color="0.92", linewidth=0.8)
            one.set_axisbelow(True)
            one.spines[["top", "right"]].set_visible(False)
    named = axes[0, 0].get_legend_handles_labels()
    axes[0, 1].legend(*named, loc="lower left", fontsize=9)  # where no line runs
    figure.savefig(path, metadata={"Software": None})


def _lines(axes: Axes, start: Model, merged: list[Model], value: Callable[[Model], float]) -> None:
    """A line for each run, from the originals on; further seeds are hollow marks."""
    named: dict[str, int] = {}
    for variant, seed in sorted({(m["variant"], m["seed"]) for m in merged}):
        run = [m for m in merged if (m["variant"], m["seed"]) == (variant, seed)]
        number = named[variant] = named.get(variant, 0) + 1
        first = number == 1
        shown = [start, *run] if first and not variant.endswith("further") else run
        axes.plot(
            [m["blocks"] for m in shown],
            [value(m) for m in shown],
            color=COLOURS[variant],
            marker=MARKS[variant],
            markersize=5 if first else 6,
            markerfacecolor=COLOURS[variant] if first else "none",
            linewidth=1.8,
            linestyle="-" if first else "",
            label={1: NAMES[variant], 2: f"{NAMES[variant]}, other seeds"}.get(number, "_"),
        )


def _sizes(axes: Axes, main: list[Model], value: Callable[[Model], float]) -> None:
    """The sequence against its files' sizes, each point with its number of blocks."""
    sizes = [m["bytes"] / 1e6 for m in main]
    axes.plot(sizes, [value(m) for m in main], color=COLOURS[MAIN], marker="o", markersize=5)
    for size, model in zip(sizes, main, strict=True):
        if 0 < model["blocks"] < 4:  # of nearly one size
            continue
        axes.annotate(
            str(model["blocks"]),
            (size, value(model)),
            textcoords="offset points",
            xytext=(0, 8),
            ha="center",
            fontsize=8,
            color="0.3",
        )
