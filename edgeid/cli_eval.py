"""The command ``eval``: error rates of a model on data, each with its confidence interval."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeid.command import (
    Commands,
    Outcome,
    add_command,
    add_model_options,
    convert_extra,
    data_directory,
    load_model,
)
from edgeid.runtime.errors import InputError


def add_commands(commands: Commands) -> None:
    """Add this file's commands to the parser."""
    parser = commands.add_parser("eval", help="measure a model on data", allow_abbrev=False)
    kinds = parser.add_subparsers(dest="kind", metavar="kind", required=True)
    faces = _add(kinds, "faces", faces_report, "measure face verification on pairs of images")
    _add_path(faces, "pairs", "CSV of pairs", "faces/lfw_pairs.csv")
    images = "zip or folder of the images (default: faces/lfw_aligned.zip)"
    faces.add_argument("--images", type=Path, help=images)
    faces.add_argument("--aligned", action="store_true", help="these images are aligned crops")
    faces.add_argument("--fold", type=int, help="only the pairs of this fold")
    every = "all pairs of --images in place of those of a CSV; a folder is a person"
    faces.add_argument("--all-pairs", action="store_true", help=every)
    voices = _add(kinds, "voices", voices_report, "measure voice verification on trials")
    _add_path(voices, "enroll", "CSV of enrolments", "speech/enroll.csv")
    _add_path(voices, "trials", "CSV of trials", "speech/trials.csv")
    _add_path(voices, "audio", "zip or folder of the recordings", "speech/dev.zip")
    people = _add(kinds, "people", people_report, "measure face and voice together")
    _add_path(people, "people", "CSV of people", "people.csv")
    _add_path(people, "faces", "zip or folder of the images", "faces/portraits.zip")
    _add_path(people, "audio", "zip or folder of the recordings", "speech/dev.zip")
    crossed = "pair every photo with every utterance of a person, not only the i-th with the i-th"
    people.add_argument("--crossed", action="store_true", help=crossed)


def _add(
    kinds: Commands, name: str, run: Callable[[argparse.Namespace], Outcome], text: str
) -> Any:
    parser = add_command(kinds, name, run, text)
    add_model_options(parser)
    parser.add_argument("--detector", help="haar, or a YuNet model (default: the model's own)")
    parser.add_argument("--plot", type=Path, help="draw the DET curve to this file")
    return parser


def _add_path(parser: Any, name: str, text: str, default: str) -> None:
    path = data_directory() / default
    parser.add_argument(f"--{name}", type=Path, default=path, help=f"{text} (default: {default})")


def faces_report(options: argparse.Namespace) -> Outcome:
    from edgeid.all_pairs import evaluate_all_pairs
    from edgeid.evaluation import evaluate_faces

    images, aligned = options.images, options.aligned
    if options.all_pairs and (images is None or options.fold is not None):
        raise InputError("--all-pairs needs --images, and has no folds")
    if images is None:
        images, aligned = data_directory() / "faces" / "lfw_aligned.zip", True
    if options.all_pairs:
        return _outcome(options, evaluate_all_pairs(load_model(options), images, aligned))
    report = evaluate_faces(load_model(options), options.pairs, images, aligned, fold=options.fold)
    return _outcome(options, report)


def voices_report(options: argparse.Namespace) -> Outcome:
    from edgeid.evaluation import evaluate_voices

    model = load_model(options)
    return _outcome(options, evaluate_voices(model, options.enroll, options.trials, options.audio))


def people_report(options: argparse.Namespace) -> Outcome:
    from edgeid.evaluation import evaluate_people

    model = load_model(options)
    report = evaluate_people(
        model, options.people, options.faces, options.audio, crossed=options.crossed
    )
    return _outcome(options, report)


def _outcome(options: argparse.Namespace, report: Any) -> Outcome:
    if options.plot is not None:
        with convert_extra():
            from edgeid.plots import plot_det

            plot_det(report, options.plot)
    return Outcome(report.to_dict(), list(report.lines()))
