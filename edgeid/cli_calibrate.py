"""The command that measures anew what the scores of a model mean, on people of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgeid.command import (
    Commands,
    Outcome,
    add_command,
    add_model_options,
    convert_extra,
    data_directory,
    load_model,
)
from edgeid.runtime.score import KINDS, Calibration
from edgeid.runtime.voice import VoiceSpec

if TYPE_CHECKING:
    from edgeid.converters.training.faces import Crops, FaceSet
    from edgeid.converters.training.speech import SpeechSet
    from edgeid.runtime.model import Model


def add_commands(commands: Commands) -> None:
    """Add ``calibrate`` to the parser."""
    parser = add_command(
        commands, "calibrate", calibrate, "set a model's thresholds by people like its users"
    )
    add_model_options(parser)
    source = "a folder or zip archive, a folder for each person, of people it was not trained on"
    parser.add_argument("--faces", type=Path, metavar="DIR|ZIP", help=f"photos or crops: {source}")
    parser.add_argument("--voices", type=Path, metavar="DIR|ZIP", help=f"recordings: {source}")
    parser.add_argument(
        "--data", type=Path, help="data sets, where these two are not given (EDGEID_DATA)"
    )
    parser.add_argument(
        "--model-version", type=int, help="of the new file (default: one more than the model's)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the .edgeid file to write")


def calibrate(options: argparse.Namespace) -> Outcome:
    with convert_extra():
        from edgeid.converters.convert import check_folder
        from edgeid.converters.model_scores import recalibrate
        from edgeid.runtime.format import write_model

        check_folder(options.out)
        model = load_model(options)
        file = recalibrate(model, *_people(options, model), options.model_version)
    size = write_model(file, options.out)
    result = {"out": str(options.out), "bytes": size, "calibration": file.calibration}
    summary = _summary(Calibration.from_dict(file.calibration))
    return Outcome(result, [f"wrote {options.out}: {size:,} bytes", *summary])


def _people(options: argparse.Namespace, model: Model) -> tuple[FaceSet | None, SpeechSet | None]:
    """Everybody who was given; of the data sets the people who were kept out of training."""
    from edgeid.converters.training.faces import read_faces
    from edgeid.converters.training.speech import read_speech

    spec = model.voice_spec or VoiceSpec()
    faces, voices = options.faces, options.voices
    if faces is None and voices is None:
        data = options.data or data_directory()
        known = read_faces(data / "faces" / "train.zip").split()
        spoken = read_speech([data / "speech" / "train_sentences.zip"], spec)
        return known[1], spoken.split()[1]

    def crop(photo: bytes) -> Crops:
        return model.read_face(photo, several="largest").crop

    return (
        read_faces(faces, crop) if faces is not None else None,
        read_speech([voices], spec) if voices is not None else None,
    )


def _summary(scores: Calibration) -> list[str]:
    lines = []
    for kind in KINDS:
        curve = getattr(scores, kind)
        if curve is not None:
            rate = max(1e-3, curve.smallest_fmr)
            lines.append(
                f"  {kind}: {curve.impostors:,} comparisons of {curve.people} people; at a false "
                f"match rate of {rate:.2g} {curve.fnmr_at(rate):.1%} of genuine ones are rejected"
            )
    return lines
