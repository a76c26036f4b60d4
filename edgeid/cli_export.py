"""The command that writes the networks of a model for other runtimes."""

from __future__ import annotations

import argparse
import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from edgeid.command import Commands, Outcome, add_command, convert_extra

if TYPE_CHECKING:
    from edgeid.runtime.format import ModelFile

_AXES = "(N, channels, height, width) in, (N, ...) out, as in the .edgeid file"


def add_commands(commands: Commands) -> None:
    """Add ``export`` to the parser."""
    from edgeid.converters.export.formats import FORMATS

    parser = add_command(commands, "export", export, "write a model as ONNX or TFLite")
    parser.add_argument("model", metavar="MODEL", help='an .edgeid file, or "default"')
    parser.add_argument("--format", required=True, choices=FORMATS, help="what to write")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--entry", action="append", default=[], help="face, voice ...; repeatable (default: all)"
    )
    parser.add_argument(
        "--single", action="store_true", help="ONNX: one file of all entries, model.onnx"
    )
    parser.add_argument(
        "--integer-only",
        action="store_true",
        help="tflite-int8: no float operator, int8 in and out (slower on a CPU)",
    )
    source = "to calibrate int8 with, beside the samples inside the package"
    for kind, what in (("faces", "photos or aligned crops"), ("voices", "recordings")):
        parser.add_argument(
            f"--samples-{kind}", type=Path, metavar="DIR|ZIP", help=f"{what} {source}"
        )


def export(options: argparse.Namespace) -> Outcome:
    from edgeid.runtime.model import DETECTOR, FACE, LANDMARKS, VOICE, Model

    with convert_extra():
        from edgeid.converters.export.model_export import ExportOptions, export_model
        from edgeid.converters.export.sample_inputs import sample_inputs

        chosen = ExportOptions(
            options.format, tuple(options.entry), options.single, options.integer_only
        )
        chosen.validate()
        model = Model.load(options.model)
        samples = sample_inputs(
            model,
            _sources(options.samples_faces, chosen.entries, (FACE, LANDMARKS, DETECTOR)),
            _sources(options.samples_voices, chosen.entries, (VOICE,)),
        )
        made = export_model(
            model.file.graph, options.out, chosen, samples, _notes(model.file, chosen.entries)
        )
    return Outcome(
        {"format": options.format, "files": [file.to_dict() for file in made]},
        [line for file in made for line in file.lines()],
    )


def _sources(given: Path | None, entries: tuple[str, ...], read_by: tuple[str, ...]) -> list[Path]:
    """The samples inside the package and those given, where some entry takes them."""
    if entries and not set(entries) & set(read_by):
        return []
    packaged = Path(str(files("edgeid") / "samples"))
    return [packaged] if given is None else [packaged, given]


def _notes(file: ModelFile, entries: tuple[str, ...]) -> dict[str, str]:
    """What a file for another runtime would otherwise lose: axes, preparation, terms."""
    notes = {"axes": _AXES}
    for name, section in (("face", file.face), ("voice", file.voice)):
        if section is not None and (not entries or name in entries):
            notes[f"{name} preparation"] = json.dumps(section, sort_keys=True)
    for key in ("name", "terms"):
        if isinstance(file.card.get(key), str):
            notes[key] = file.card[key]
    return notes
