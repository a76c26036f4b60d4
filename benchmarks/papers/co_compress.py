"""Paper 000, co-compress: one file of shared codebooks out of a face CNN and a speaker CNN.

    python -m benchmarks.papers.co_compress [--seed 1] [--point 40x|16x|all] [--compare]
    python -m benchmarks.papers.co_compress --summary

What is reproduced: NeuralMerger's headline, a pair of well-trained CNNs of different tasks
over twelve times smaller with the accuracy about kept (367.8 MB -> 30.4 MB, light version
18.3 MB). Our pair is the default model's: two half-width CNN-20s, 7.4 million weights, trained
here. Sizes are of files: the float32 pair against the compressed one, both ``.edgeid`` with
nothing in them but the graph. Differences: the paper's pair has twelve times as many weights
to begin with, so there is more to take off. Codewords are 8-bit; K and r are chosen layer by
layer under a budget; codebooks are refined against whole input patches before they are
calibrated, which is most of what is won, and the calibration is short or left out.

Data: calibration inputs are crops and speech of the training people (mirrored half the
time), without labels. The settings below were chosen on the calibration people (``held`` in
the results), who are in no training. LFW folds 4 and 5 and the trials of dev.zip are for the
final figures alone. Nearly every voice set is one recording session a speaker, so rates are
optimistic.

``--compare`` also measures what sharing saves, against codebooks of each network's own that
are as near to the originals.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.papers.default_pair import (
    HELD,
    WORK,
    held_figures,
    held_inputs,
    original_pair,
    size,
    training_inputs,
)
from benchmarks.papers.figures import (
    RESULTS,
    arguments,
    evaluate_faces,
    evaluate_voices,
    per_cent,
    save_results,
    table,
)
from edgeid.converters.codebook.calibration import CodebookCalibration
from edgeid.converters.codebook.shared_codebooks import SharedCodebooks
from edgeid.converters.recipe import Context, run_recipe
from edgeid.runtime.format import ModelFile, write_model
from edgeid.runtime.graph import Graph


@dataclass(frozen=True)
class Point:
    """A size to reach.

    Attributes:
        times: smaller than the float32 pair.
        steps: of calibration.
        apart: layers may have codebooks of their own where sharing costs (see ``sharing``).
    """

    times: float
    steps: int
    apart: bool = False


DROPS = {
    "face_accuracy": "LFW accuracy lost, points",
    "voice_eer_all": "voice EER, all sets, points",
    "voice_eer_mean_of_sets": "voice EER, mean of sets, points",
}
POINTS = {
    "40x": Point(40.2, 60),
    "16x": Point(16.1, 0),
    "40x-apart": Point(40.2, 0, apart=True),
    "20x-apart": Point(20.1, 0, apart=True),
}
DEFAULT = ("40x", "16x")


def codebooks(budget: int, steps: int) -> SharedCodebooks:
    """The pass with the settings found on the calibration people."""
    return SharedCodebooks(
        budget=budget,
        samples=512,
        rounds=5,
        calibration=CodebookCalibration(
            steps=steps, batch=32, rate=4e-3, save_every=20, bfloat16=True
        ),
    )


def figures(graph: Graph) -> dict[str, Any]:
    """Development figures and the size of the file."""
    return {
        "bytes": size(graph),
        "face": evaluate_faces(graph),
        "voice": evaluate_voices(graph),
    }


def drops(found: dict[str, Any], original: dict[str, Any]) -> dict[str, float]:
    """Points lost against the original; negative where something was won."""

    def lost(name: str) -> float:
        return 100 * (
            found["voice"][name]["eer"]["value"] - original["voice"][name]["eer"]["value"]
        )

    accuracy = original["face"]["accuracy"]["value"] - found["face"]["accuracy"]["value"]
    face_eer = found["face"]["eer"]["value"] - original["face"]["eer"]["value"]
    mean = found["voice"]["mean_eer"] - original["voice"]["mean_eer"]
    return {
        "face_accuracy": 100 * accuracy,
        "face_eer": 100 * face_eer,
        "voice_eer_all": lost("all"),
        "voice_eer_mean_of_sets": 100 * mean,
        **{f"voice_eer_{name}": lost(name) for name in ("audiomnist", "ravdess", "speechocean")},
    }


def compress(graph: Graph, context: Context, step: SharedCodebooks) -> tuple[Graph, dict[str, Any]]:
    """Run the pass; the graph and what it reports."""
    started = time.monotonic()
    made, (report,) = run_recipe([step], graph, context)
    seconds = report.seconds if report.resumed else time.monotonic() - started
    return made, {
        "settings": step.to_dict(),
        "lines": list(report.lines),
        "figures": report.figures,
        "seconds": seconds,
    }


def run_point(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One point of one seed, every stage resumed from the work folder."""
    work = options.work or WORK
    original = original_pair(work)
    point = POINTS[name]
    count = 600 if options.quick else 8000
    samples = training_inputs(work, options.seed, count)
    context = Context(samples, work / name, seed=options.seed, threads=options.threads)
    step = codebooks(int(size(original) / point.times), point.steps)
    step = replace(step, compare=options.compare, apart=point.apart)
    if options.quick:
        step = replace(step, samples=32, rounds=1, calibration=CodebookCalibration(steps=2))
    made, report = compress(original, context, step)
    write_model(ModelFile(made), work / f"{name}-seed{options.seed}.edgeid")
    held = held_figures(made, original, held_inputs(work, 200 if options.quick else HELD))
    return report | {"held": held, **figures(made)}


def markdown(results: dict[str, Any]) -> str:
    """Ours beside the paper's."""
    base = results["original"]
    rows = [_row("float32 pair", base, base)]
    rows += [_row(name, found, base) for name, found in results["points"].items()]
    paper = ["paper 000 (NeuralMerger)", "30.4 MB of 367.8 MB", "12.1", "about kept", "about kept"]
    light = ["paper 000, light", "18.3 MB of 367.8 MB", "20.1", "-", "-"]
    head = ["model", "bytes", "times smaller", "LFW accuracy, %", "voice EER, all sets, %"]
    return table(head, [*rows, paper, light])


def _row(name: str, found: dict[str, Any], base: dict[str, Any]) -> list[str]:
    return [
        name,
        f"{found['bytes']:,}",
        f"{base['bytes'] / found['bytes']:.1f}",
        per_cent(found["face"]["accuracy"]),
        per_cent(found["voice"]["all"]["eer"]),
    ]


def summary(folder: Path = RESULTS) -> str:
    """The points of all seeds that are in the results: mean, least and most."""
    rows = []
    for name in POINTS:
        runs = [
            json.loads(path.read_text())["points"][name]
            for path in sorted(folder.glob(f"co_compress-{name}-seed*.json"))
        ]
        if runs:
            values = [[run["drop_points"][key] for run in runs] for key in DROPS]
            cosines = [
                [run["held"][entry]["cosine"] for run in runs] for entry in ("face", "voice")
            ]
            times = [run["times_smaller"] for run in runs]
            row = [_spread(times, ".1f"), *(_spread(v, "+.2f") for v in values)]
            rows.append([name, str(len(runs)), *row, *(_spread(v, ".4f") for v in cosines)])
    head = ["point", "seeds", "times smaller", *DROPS.values(), "cosine face", "cosine voice"]
    return table(head, rows)


def _spread(values: list[float], form: str) -> str:
    mean = format(float(np.mean(values)), form)
    return f"{mean} ({format(min(values), form)} .. {format(max(values), form)})"


def main() -> None:
    """Compress, measure, print, keep."""
    parser = arguments(__doc__)
    parser.add_argument("--point", choices=[*POINTS, "all"], default="all")
    parser.add_argument("--compare", action="store_true", help="measure what sharing saves")
    parser.add_argument("--summary", action="store_true", help="of all seeds run so far")
    options = parser.parse_args()
    if options.summary:
        print(summary())
        return
    names = [*DEFAULT] if options.point == "all" else [options.point]
    original = figures(original_pair(options.work or WORK))
    for name in names:
        found = run_point(name, options)
        found["times_smaller"] = original["bytes"] / found["bytes"]
        found["drop_points"] = drops(found, original)
        results = {
            "paper": "000",
            "seed": options.seed,
            "quick": options.quick,
            "original": original,
            "points": {name: found},
        }
        out = options.out or RESULTS / f"co_compress-{name}-seed{options.seed}.json"
        save_results(out, results)
        print(markdown(results))


if __name__ == "__main__":
    main()
