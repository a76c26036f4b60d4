"""What the paper reproductions share: figures of one network of a graph, options, results.

Figures are those of ``edgeid eval``: LFW folds 4 and 5 and the voice trials of ``dev.zip``.
What a network reads (crops; windows of speech) is prepared once and kept on the disk, so that
evaluating a further network costs its inference alone: some 15 seconds for faces and 15 for
voices with a half-width CNN-20 on one core.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.command import data_directory
from edgeid.extraction import embed_images
from edgeid.intervals import Rate, binomial_rate
from edgeid.measurement import measure, score_matrix
from edgeid.metrics import cross_accuracy
from edgeid.protocol import VoiceTrial, read_enrolment, read_pairs, read_trials
from edgeid.report import ScoreReport
from edgeid.roc import Trials
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import DataError
from edgeid.runtime.face_spec import FaceSpec, network_input
from edgeid.runtime.graph import Graph
from edgeid.runtime.members import Members
from edgeid.runtime.replacement import replace_file
from edgeid.runtime.score import Backend, Calibration, similarity
from edgeid.runtime.voice import VoiceSpec, read_voice

Floats = NDArray[np.float32]
Prepare = Callable[[NDArray[np.uint8]], Floats]
INPUTS = Path("work/papers/inputs")  # crops and windows, prepared once
RESULTS = Path("benchmarks/papers/results")
BATCH = 64


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every script has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: 1)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--work", type=Path, help="folder of cached stages (resumed)")
    parser.add_argument("--threads", type=int, default=1, help="of training (default: 1)")
    parser.add_argument("--quick", action="store_true", help="a short run that shows it works")
    return parser


def save_results(path: str | Path, results: dict[str, Any]) -> None:
    """Write JSON beside ``path``, then rename it there."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, (json.dumps(results, indent=2) + "\n").encode())


def evaluate_faces(
    graph: Graph,
    entry: str = "face",
    spec: FaceSpec | None = None,
    backend: Backend | None = None,
    engine_name: str = "onnxruntime",
) -> Any:
    """LFW protocol on the 1,200 development pairs.

    Args:
        graph: holds the face network.
        entry: its name.
        spec: preprocessing; None: that of our own grey networks (1 x 112 x 96), or grey
            levels 0..255 for one that takes (1 or 3) x 112 x 112.
        backend: scores by Joint Bayesian in place of the cosine.
        engine_name: onnxruntime computes in float32, native in eight bits.

    Returns:
        JSON-ready dict: ``accuracy``, ``eer``, ``fnmr`` at FMR 1e-2 and 1e-3, each with
        value, 95 % interval (low, high), errors and trials; and the embedding's ``dim``.
    """
    pairs = read_pairs(data_directory() / "faces" / "lfw_pairs.csv")
    names, crops = lfw_crops()
    if spec is None or isinstance(spec, FaceSpec):
        x = network_input(crops, spec or _face_spec(graph, entry))
    else:
        x = spec(crops)
    rows = embed(graph, entry, x, engine_name=engine_name)
    at = dict(zip(names, _unit(rows), strict=True))
    trials = Trials(
        np.array([similarity(at[p.a][None], at[p.b], backend) for p in pairs], np.float64),
        np.array([p.same for p in pairs]),
        np.array([owner(p.a) for p in pairs]),
        np.array([owner(p.b) for p in pairs]),
    )
    folds = np.array([p.fold for p in pairs])
    errors = sum(rate.errors for rate in cross_accuracy(trials, folds).values())
    accuracy = binomial_rate(errors, len(folds)).complement()
    report = measure("LFW", trials, "face", Calibration(), accuracy)
    return _figures(report) | {"accuracy": accuracy.to_dict(), "dim": rows.shape[1]}


def evaluate_voices(
    graph: Graph,
    entry: str = "voice",
    spec: VoiceSpec | None = None,
    backend: Backend | None = None,
    engine_name: str = "onnxruntime",
) -> Any:
    """The trials of the development speakers, scored by cosine or ``backend``.

    Args:
        graph: holds the voice network.
        entry: its name.
        spec: preprocessing; None: the default one.

    Returns:
        JSON-ready dict: for each set and for all trials together ("all": one threshold for
        all sets) ``eer``, ``hter`` and ``fnmr`` as in ``evaluate_faces``; ``mean_eer``, the
        plain mean over the sets.
    """
    speech = data_directory() / "speech"
    enrolment = read_enrolment(speech / "enroll.csv")
    rows = read_trials(speech / "trials.csv", enrolment)
    names, windows, owner = _dev_windows(spec or VoiceSpec())
    outputs = embed(graph, entry, windows, engine_name=engine_name)
    means = np.stack([outputs[owner == i].mean(0) for i in range(len(names))])
    at = dict(zip(names, _unit(means), strict=True))
    templates = {s: np.stack([at[f] for f in files]) for s, files in enrolment.items()}
    speaker_of = {row.file: row.claimed for row in rows if row.target}
    sets = sorted({row.set for row in rows})
    found: dict[str, Any] = {}
    for name in [*sets, "all"]:
        chosen = [row for row in rows if name in ("all", row.set)]
        trials = _voice_trials(chosen, templates, at, speaker_of, backend)
        found[name] = _figures(measure(name, trials, "voice", Calibration()))
    found["mean_eer"] = float(np.mean([found[name]["eer"]["value"] for name in sets]))
    return found


def embed(
    graph: Graph, entry: str, x: Floats, threads: int = 1, engine_name: str = "onnxruntime"
) -> Floats:
    """One entry's outputs (N, d) on inputs (N, *shape); in float32 unless an engine is named."""
    engine = make_engine(one_entry(graph, entry), engine_name, threads)
    parts = [engine.run(entry, x[i : i + BATCH]) for i in range(0, len(x), BATCH)]
    return np.concatenate(parts)


def one_entry(graph: Graph, entry: str) -> Graph:
    """The part of a graph that one entry needs."""
    layers = graph.layers_of(entry)
    read = {name for layer in layers for name in layer.tensor_names()}
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in read}
    values = {name for layer in layers for name in (*layer.inputs, layer.output)}
    return replace(
        graph,
        entries=(graph.entry(entry),),
        layers=layers,
        tensors=tensors,
        scales={name: scale for name, scale in graph.scales.items() if name in values},
        table_scales={
            x.name: graph.table_scales[x.name] for x in layers if x.name in graph.table_scales
        },
    )


def per_cent(rate: dict[str, Any]) -> str:
    """A rate with its interval, as tables show it."""
    low, high = 100 * rate["low"], 100 * rate["high"]
    return f"{100 * rate['value']:.2f} ({low:.2f} - {high:.2f})"


def table(head: list[str], rows: Iterable[list[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _figures(report: ScoreReport) -> dict[str, Any]:
    def plain(rate: Rate | None) -> dict[str, Any] | None:
        return None if rate is None else rate.to_dict()

    return {
        "genuine": report.genuine,
        "impostors": report.impostors,
        "people": report.people,
        "eer": report.eer.to_dict(),
        "hter": plain(report.hter),
        "fnmr": {f"{p.fmr:g}": plain(p.fnmr) for p in report.points if p.fnmr is not None},
    }


def _voice_trials(
    rows: list[VoiceTrial],
    templates: dict[str, Floats],
    probes: dict[str, Floats],
    speaker_of: dict[str, str],
    backend: Backend | None,
) -> Trials:
    speakers = sorted({row.claimed for row in rows})
    files = sorted({row.file for row in rows})
    scores = score_matrix([templates[s] for s in speakers], [probes[f] for f in files], backend)
    row_of = {speaker: i for i, speaker in enumerate(speakers)}
    column_of = {file: i for i, file in enumerate(files)}
    return Trials(
        np.array([scores[row_of[r.claimed], column_of[r.file]] for r in rows]),
        np.array([r.target for r in rows]),
        np.array([r.claimed for r in rows]),
        np.array([speaker_of.get(r.file, owner(r.file)) for r in rows]),
    )


def _face_spec(graph: Graph, entry: str) -> FaceSpec:
    shape = graph.entry(entry).shape
    if shape == (1, 112, 96):
        return FaceSpec()
    if shape[0] in (1, 3) and shape[1:] == (112, 112):
        return FaceSpec(channels=shape[0], crop=(0, 0, 112, 112), mean=0.0, scale=1.0)
    raise DataError(f"{entry} takes {shape}: give the preprocessing")


@lru_cache(maxsize=1)
def lfw_crops() -> tuple[list[str], NDArray[np.uint8]]:
    """Every crop of the development pairs once: names, (N, 112, 112) grey."""
    faces = data_directory() / "faces"

    def make() -> dict[str, NDArray[Any]]:
        crops: dict[str, NDArray[np.uint8]] = {}
        names = {n for p in read_pairs(faces / "lfw_pairs.csv") for n in (p.a, p.b)}
        with Members(faces / "lfw_aligned.zip") as members:
            embed_images(_Kept(crops), members, names, True)  # type: ignore[arg-type]
        return {"names": np.array(sorted(names)), "crops": np.stack(list(crops.values()))}

    kept = _prepared(INPUTS / "lfw.npz", make)
    return kept["names"].tolist(), kept["crops"]


class _Kept:
    """Takes the place of a model: keeps the crops that it is asked to embed."""

    calibration = None

    def __init__(self, crops: dict[str, NDArray[np.uint8]]) -> None:
        self._crops = crops

    def embed_aligned(self, crops: NDArray[np.uint8]) -> Floats:
        self._crops.update({f"{len(self._crops) + i}": crop for i, crop in enumerate(crops)})
        return np.zeros((len(crops), 1), np.float32)


@lru_cache(maxsize=2)
def _dev_windows(spec: VoiceSpec) -> tuple[list[str], Floats, NDArray[np.int64]]:
    """All development recordings: names, windows (N, 1, frames, mels), recording of each."""
    archive = data_directory() / "speech" / "dev.zip"

    def make() -> dict[str, NDArray[Any]]:
        with Members(archive) as members:
            names = sorted(members.names)
            parts = [read_voice(members.read(n), None, spec, checks=False).windows for n in names]
        owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return {"names": np.array(names), "windows": np.concatenate(parts), "owner": owner}

    key = "-".join(str(value) for value in spec.to_dict().values())
    kept = _prepared(INPUTS / f"dev-{key}.npz", make)
    return kept["names"].tolist(), kept["windows"], kept["owner"]


def _prepared(path: Path, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Arrays kept at ``path``, made where there are none."""
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    made = make()
    stream = io.BytesIO()
    np.savez(stream, **made)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, stream.getvalue())
    return made


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def owner(name: str) -> str:
    path = PurePosixPath(name)
    return path.parent.name or path.stem
