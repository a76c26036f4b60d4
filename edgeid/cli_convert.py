"""The command that makes a model file out of trained networks."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeid.command import Commands, Outcome, add_command, convert_extra, data_directory
from edgeid.runtime.errors import DataError, GraphError

if TYPE_CHECKING:
    from edgeid.converters.convert import ConvertOptions, ConvertReport
    from edgeid.converters.network_files import Networks
    from edgeid.converters.people import People
    from edgeid.converters.report.steps import Judge

HELD_OUT = 2000  # samples of each network by which accuracies are measured
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kM]?)B?")
_UNITS = {"": 1, "k": 1_000, "M": 1_000_000}


def add_commands(commands: Commands) -> None:
    """Add ``convert`` to the parser."""
    parser = add_command(
        commands, "convert", convert, "merge and compress two trained networks into a model file"
    )
    network = "a training checkpoint, an .onnx or .edgeid file, or a .pt2 file of torch.export"
    parser.add_argument("--face", type=Path, required=True, help=network)
    parser.add_argument("--voice", type=Path, required=True, help=network)
    parser.add_argument(
        "--landmarks", type=Path, help="checkpoint or .edgeid file; without, aligned crops only"
    )
    parser.add_argument(
        "--detector", type=Path, help="checkpoint or .edgeid file; without, OpenCV's Haar"
    )
    parser.add_argument("--out", type=Path, required=True, help="the .edgeid file to write")
    _add_people(parser.add_argument_group("people to learn from and to measure by"))
    _add_compression(parser.add_argument_group("compression"))
    parser.add_argument(
        "--mirror", action="store_true", help="embed faces together with their mirror images"
    )
    parser.add_argument("--card", type=Path, help="JSON file with the model card")
    parser.add_argument("--model-version", type=int, default=1, help="counts up (default 1)")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write report.html, report.json")
    parser.add_argument("--work", type=Path, metavar="DIR", help="finished passes (OUT.work)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")


def _add_people(group: Any) -> None:
    source = "a folder or zip archive, a folder for each person (without: nobody is named)"
    group.add_argument(
        "--faces", type=Path, metavar="DIR|ZIP", help=f"aligned crops or photos: {source}"
    )
    group.add_argument("--voices", type=Path, metavar="DIR|ZIP", help=f"recordings: {source}")
    group.add_argument(
        "--data", type=Path, help="data sets, where these two are not given (EDGEID_DATA)"
    )
    group.add_argument("--samples", type=int, default=6000, help="of each network (default 6000)")
    group.add_argument("--no-calibration", action="store_true", help="the model cannot decide yet")
    group.add_argument(
        "--scoring",
        default="cosine",
        choices=("cosine", "joint-bayesian"),
        help="how embeddings are compared",
    )


def _add_compression(group: Any) -> None:
    group.add_argument(
        "--recipe",
        default="plain",
        help="plain, codebook, zipper, zipper-codebook, logminmax, palette, binary, flame, or a "
        ".json file with passes (default plain)",
    )
    group.add_argument("--budget", help="largest model file, for example 1MB or 800kB")
    group.add_argument(
        "--max-drop", type=float, metavar="POINTS", help="of accuracy that may be lost"
    )
    group.add_argument(
        "--weights",
        default="float16",
        choices=("float16", "int8"),
        help="how weights that no pass has encoded are stored",
    )
    group.add_argument(
        "--landmark-bits",
        type=int,
        metavar="N",
        help="store the landmark network by a palette of 2^N values for each kernel, 1..12",
    )


def convert(options: argparse.Namespace) -> Outcome:
    with convert_extra():
        from edgeid.converters.convert import convert as run
        from edgeid.converters.convert import work_folder
        from edgeid.converters.network_files import load_networks

        networks = load_networks(options.face, options.voice, options.landmarks, options.detector)
        chosen = _chosen(options, networks)
        _check_work(options.work or work_folder(options.out), options.resume)
        people = _people(options, networks, chosen)
        judge = _judge(people) if options.report or options.max_drop is not None else None
        if judge is not None:
            _check_modalities(networks, judge)
        report = run(networks, options.out, chosen, people, judge, options.work)
        lines = report.lines()
        if options.report is not None:
            lines += _write_report(options.report, report, people, judge)
    return Outcome(report.to_dict(), lines)


def _chosen(options: argparse.Namespace, networks: Networks) -> ConvertOptions:
    from edgeid.converters.compression import Limits
    from edgeid.converters.convert import ConvertOptions, graph_budget
    from edgeid.converters.named_recipes import Ladder, named_ladder, read_recipe
    from edgeid.converters.network_files import face_spec

    budget = parse_size(options.budget) if options.budget is not None else None
    chosen = ConvertOptions(
        limits=Limits(budget, options.max_drop),
        weights=options.weights,
        scoring=options.scoring,
        calibrated=not options.no_calibration,
        samples=options.samples,
        seed=options.seed,
        threads=options.threads,
        card=_read_card(options.card) if options.card is not None else None,
        version=options.model_version,
        landmark_bits=options.landmark_bits,
        face=replace(face_spec(networks.face), mirror=options.mirror),
    )
    if options.recipe.endswith(".json"):
        return replace(chosen, ladder=Ladder((read_recipe(Path(options.recipe)),)))
    left = graph_budget(budget, networks, chosen) if budget is not None else None
    given = options.faces is not None or options.voices or not options.no_calibration
    ladder = named_ladder(options.recipe, options.weights, left, scales=bool(given) or None)
    return replace(chosen, ladder=ladder)


def parse_size(text: str) -> int:
    """Bytes of ``1MB``, ``800 kB`` or ``1000000``; raises DataError."""
    match = _SIZE.fullmatch(text.strip())
    size = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 1:
        raise DataError(f"{text!r} is no size: write 800kB, 1.5MB or a number of bytes")
    return size


def _check_work(folder: Path, resume: bool) -> None:
    if not resume and folder.is_dir() and any(folder.glob("*.edgeid")):
        raise DataError(
            f"{folder} holds the passes of a run that was interrupted: give --resume to go on "
            "with it, or remove the folder"
        )


def _people(
    options: argparse.Namespace, networks: Networks, chosen: ConvertOptions
) -> People | None:
    """Who was given; the data sets stand in where passes or calibration need somebody."""
    from edgeid.converters.people import read_people

    faces, voices, data = options.faces, options.voices, None
    if faces is None and voices is None:
        if not chosen.calibrated and options.recipe == "plain" and options.report is None:
            return None
        data = options.data or data_directory()
        faces = data / "faces" / "train.zip"
        voices = data / "speech" / "train_sentences.zip"
    assert chosen.face is not None  # ``_chosen`` sets it
    people = read_people(
        faces,
        [voices] if voices else [],
        chosen.face,
        chosen.voice,
        networks.photo_reader(chosen.face),
    )
    return people if data is None else people.with_training_sets(data)


def _judge(people: People | None) -> Judge | None:
    """What measures a graph on people who were held out; None where nobody is named."""
    from edgeid.comparison import make_judge

    if people is None:
        return None
    held = people.held_out(HELD_OUT)
    return make_judge(held.samples, held.labels) if held.labels else None


def _check_modalities(networks: Networks, judge: Judge) -> None:
    """Networks of one input shape can be swapped, and nothing else would show it."""
    from edgeid.runtime.graph import merge_graphs

    if networks.face.entries[0].shape != networks.voice.entries[0].shape:
        return
    given = judge(networks.pair())
    if len(given) < 2:
        return
    swapped = judge(merge_graphs(face=networks.voice, voice=networks.face))
    if all(swapped[entry].value < given[entry].value for entry in given):
        raise GraphError(
            "the face network verifies voices better, and the voice network faces: are the two "
            "swapped?"
        )


def _write_report(
    folder: Path, report: ConvertReport, people: People | None, judge: Judge | None
) -> list[str]:
    from edgeid.converters.report.page import write_report
    from edgeid.converters.report.steps import measure_steps

    held = people.held_out(HELD_OUT).samples if people is not None else {}
    measured = measure_steps(report.compressed.steps, held, judge)
    paths = write_report(folder, measured, title=report.out.name, lines=report.summary())
    return [f"wrote {path}" for path in paths]


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"the model card {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # bytes that are no text are one too
        raise DataError(f"the model card {path} is not JSON: {error}") from error
    if not isinstance(card, dict):
        raise DataError(f"the model card {path} is not a JSON object")
    return card
