"""The default model's two networks in float32, and what they read of training and calibration
people: what the scripts about codebooks work with."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.papers.figures import embed
from edgeid.converters.graphs.torch_graph import export_torch
from edgeid.converters.networks.cnn20 import INPUT_SHAPE
from edgeid.converters.training.checkpoint import load_network
from edgeid.converters.training.faces import data_directory, read_faces
from edgeid.converters.training.speech import SpeechSet, read_speech
from edgeid.converters.training.training import face_input
from edgeid.metrics import equal_error_rate
from edgeid.runtime.format import ModelFile, dump_model, read_model, write_model
from edgeid.runtime.graph import Graph, merge_graphs
from edgeid.runtime.replacement import replace_file
from edgeid.runtime.voice import VoiceSpec, cut_windows

WORK = Path("work/papers/co_compress")
HELD = 2000  # crops and windows of the calibration people


def original_pair(work: Path) -> Graph:
    """The default model's networks in float32."""
    path = work / "float32.edgeid"
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        graph = merge_graphs(face=own_network("face"), voice=own_network("voice"))
        write_model(ModelFile(graph), path)
    return read_model(path).graph


def own_network(name: str) -> Graph:
    """One of the default model's networks: half-width CNN-20, "face" or "voice"."""
    return export_torch(load_network(Path(f"work/{name}2.pt")), INPUT_SHAPE, name)


@dataclass(frozen=True)
class Inputs:
    """What the networks read, and whose it is: (N, 1, 112, 96) and (N,) each."""

    faces: NDArray[np.float32]
    face_labels: NDArray[np.int64]
    voices: NDArray[np.float32]
    voice_labels: NDArray[np.int64]


def training_inputs(work: Path, seed: int, count: int) -> dict[str, NDArray[np.float32]]:
    """Crops and windows of the training people in random order, crops mirrored half the time."""
    kept = prepared(work / "training.npz", lambda: inputs_of(0))
    rng = np.random.default_rng(seed)
    found = {}
    for name in ("face", "voice"):
        every = kept[name]
        found[name] = every[rng.permutation(len(every))[:count]]
    mirrored = rng.random(len(found["face"])) < 0.5
    crops = found["face"]
    crops[mirrored] = crops[mirrored][:, :, ::-1]
    return {"face": face_input(crops).numpy(), "voice": found["voice"]}


def held_inputs(work: Path, count: int = HELD) -> Inputs:
    """The same of the calibration people."""
    kept = prepared(work / "held.npz", lambda: inputs_of(1))
    rng = np.random.default_rng(0)
    some = {n: rng.permutation(len(kept[n]))[:count] for n in ("face", "voice")}
    return Inputs(
        face_input(kept["face"][some["face"]]).numpy(),
        kept["face_labels"][some["face"]],
        kept["voice"][some["voice"]],
        kept["voice_labels"][some["voice"]],
    )


def inputs_of(half: int) -> dict[str, NDArray[Any]]:
    """Half 0: training people; 1: calibration people."""
    data, spec = data_directory(), VoiceSpec()
    faces = read_faces(data / "faces" / "train.zip").split()[half]
    archives = [data / "speech" / f"train_{name}.zip" for name in ("sentences", "words")]
    windows, labels = _windows(read_speech(archives, spec).split()[half], spec)
    return {
        "face": faces.crops,
        "face_labels": faces.labels,
        "voice": windows,
        "voice_labels": labels,
    }


def _windows(speech: SpeechSet, spec: VoiceSpec) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    parts = [[cut_windows(u, spec) for u in own] for own in speech.utterances]
    counts = [sum(map(len, own)) for own in parts]
    labels = np.repeat(np.arange(len(parts)), counts)
    return np.concatenate([x for own in parts for x in own]), labels


def prepared(path: Path, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Arrays kept at ``path``, made where there are none."""
    if not path.is_file():
        stream = io.BytesIO()
        np.savez(stream, **make())  # type: ignore[arg-type]
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, stream.getvalue())
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def held_figures(graph: Graph, original: Graph, held: Inputs) -> dict[str, Any]:
    """On the calibration people: cosine to the original embedding, and EER of all pairs."""
    found: dict[str, Any] = {}
    sides = (("face", held.faces, held.face_labels), ("voice", held.voices, held.voice_labels))
    for name, x, labels in sides:
        own, other = (_unit(embed(g, name, x)) for g in (graph, original))
        upper = np.triu_indices(len(x), 1)
        same = (labels[:, None] == labels[None, :])[upper]
        found[name] = {
            "cosine": float((own * other).sum(1).mean()),
            "eer": equal_error_rate((own @ own.T)[upper], same),
            "original_eer": equal_error_rate((other @ other.T)[upper], same),
            "samples": len(x),
        }
    return found


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def size(graph: Graph) -> int:
    """Bytes of a file with nothing but the graph."""
    return len(dump_model(ModelFile(graph)))
