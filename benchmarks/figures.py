"""The README's accuracy figures, by the same code as ``edgeid eval``.

    python benchmarks/figures.py [--model M] [--card M.edgeid]

needs the development data (EDGEID_DATA). Prints Markdown. ``--card`` also writes the figures
into the model card of a file; its networks, and so its templates, stay as they are.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeid.all_pairs import evaluate_all_pairs
from edgeid.command import data_directory
from edgeid.evaluation import evaluate_faces, evaluate_people, evaluate_voices
from edgeid.intervals import Rate
from edgeid.report import ScoreReport
from edgeid.runtime.format import read_model, write_model
from edgeid.runtime.model import Model

Row = tuple[str, str, Rate | None, str, str]


def row(what: str, part: ScoreReport, figure: str, rate: Rate | None, command: str) -> Row:
    """One line of the table; the counts are genuine + impostor comparisons."""
    counts = f"{part.genuine:,} + {part.impostors:,} of {part.people}"
    return what, figure, rate, counts, command


def figures(model: Model, data: Path) -> list[Row]:
    """Run every protocol on the development files."""
    faces, speech = data / "faces", data / "speech"
    pairs, aligned, photos = (
        faces / name for name in ("lfw_pairs.csv", "lfw_aligned.zip", "lfw_photos.zip")
    )
    rows: list[Row] = []
    both = evaluate_faces(model, pairs, aligned, True).parts[0]
    rows.append(row("faces, aligned crops", both, "accuracy", both.accuracy, "faces"))
    rows.append(row("faces, aligned crops", both, "EER", both.eer, "faces"))
    crops = evaluate_faces(model, pairs, aligned, True, fold=5).parts[0]
    rows.append(row("faces, aligned, fold 5", crops, "accuracy", crops.accuracy, "faces --fold 5"))
    whole = evaluate_faces(model, pairs, photos, False, fold=5)
    command = "faces --fold 5 --images lfw_photos.zip"
    what = f"faces, photos, fold 5 ({whole.failed} without a face)"
    rows.append(row(what, whole.parts[0], "accuracy", whole.parts[0].accuracy, command))
    orl = evaluate_all_pairs(model, faces / "orl.zip", True).parts[0]
    command = "faces --all-pairs --aligned --images orl.zip"
    rows.append(row("faces, ORL, all pairs", orl, "EER", orl.eer, command))
    voices = evaluate_voices(
        model, speech / "enroll.csv", speech / "trials.csv", speech / "dev.zip"
    )
    for part in voices.parts:
        rows.append(row(f"voices, {part.name}", part, "EER", part.eer, "voices"))
        rows.append(row(f"voices, {part.name}", part, "HTER", part.hter, "voices"))
    for crossed in (False, True):
        report = evaluate_people(
            model,
            data / "people.csv",
            faces / "portraits.zip",
            speech / "dev.zip",
            crossed=crossed,
        )
        command = "people --crossed" if crossed else "people"
        for part in report.parts:
            if part.name == "fused" or not crossed:
                rows += people_rows(part, command)
    return rows


def people_rows(part: ScoreReport, command: str) -> list[Row]:
    """EER, FNMR at FMR 1e-3, and what the stored threshold for FMR 1e-3 does."""
    rows = [row(f"people, {part.name}", part, "EER", part.eer, command)]
    for point in part.points:
        if point.fmr < 1e-2 and point.fnmr is not None:
            name = f"FNMR at FMR {point.fmr:g}"
            rows.append(row(f"people, {part.name}", part, name, point.fnmr, command))
    for decision in part.decisions:
        if decision.fmr == 1e-3:
            for name, rate in (("FMR", decision.observed_fmr), ("FNMR", decision.observed_fnmr)):
                figure = f"{name} at the stored threshold for 0.001"
                rows.append(row(f"people, {part.name}", part, figure, rate, command))
    return rows


def markdown(rows: list[Row]) -> str:
    """The table of the README."""
    lines = [
        "| what | figure | % | 95 % interval | comparisons | `edgeid eval` ... |",
        "|---|---|---|---|---|---|",
    ]
    for what, figure, rate, counts, command in rows:
        if rate is None:
            lines.append(f"| {what} | {figure} | not supported | | {counts} | `{command}` |")
            continue
        interval = f"{100 * rate.low:.2f} - {100 * rate.high:.2f}"
        lines.append(
            f"| {what} | {figure} | {100 * rate.value:.2f} | {interval} | {counts} | `{command}` |"
        )
    return "\n".join(lines)


def write_card(path: Path, rows: list[Row]) -> None:
    """Put the figures into the card of a model file."""
    metrics: list[dict[str, Any]] = [
        {"what": w, "figure": f, "comparisons": c, **(rate.to_dict() if rate else {})}
        for w, f, rate, c, _ in rows
    ]
    file = read_model(path)
    card = {**file.card, "metrics": metrics}
    write_model(replace(file, card=card), path)


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--card", type=Path, help="the .edgeid file whose card is to be renewed")
    options = parser.parse_args()
    rows = figures(Model.load(options.model), data_directory())
    print(markdown(rows))
    if options.card is not None:
        write_card(options.card, rows)


if __name__ == "__main__":
    main()
