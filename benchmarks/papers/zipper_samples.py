"""What the zipper is calibrated on: views of training people, and what the originals say.

No label is used. Calibration people are kept beside them, to choose settings by.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from benchmarks.papers.figures import embed
from edgeid.command import data_directory
from edgeid.converters.graphs.weight_calibration import Batch, Task, regression_loss
from edgeid.converters.scores.verification import pair_error
from edgeid.converters.training.faces import augment, read_faces
from edgeid.converters.training.speech import SpeechSampler, read_noise, read_speech
from edgeid.converters.training.teacher import make_view
from edgeid.runtime.face_spec import FaceSpec, network_input
from edgeid.runtime.graph import Graph
from edgeid.runtime.replacement import replace_file
from edgeid.runtime.voice import VoiceSpec, cut_windows

Arrays = dict[str, NDArray[Any]]
BLENDS = 4859  # views of faces beyond one of every training crop: 20,000 in all
WINDOWS = 14000  # of speech
HELD_FACES = 900
HELD_UTTERANCES = 8  # of a calibration speaker, each at least
SHORTEST = 0.6  # seconds


@dataclass(frozen=True)
class Samples:
    """Inputs of one network and its embeddings of them.

    Attributes:
        entry: the network's name.
        inputs: faces uint8 (N, 112, 112); windows float16 (N, 1, 112, 96).
        aims: float32 (N, 128), the original's embeddings.
        held, held_aims, labels: the same of calibration people, and who they are.
    """

    entry: str
    inputs: NDArray[Any]
    aims: NDArray[np.float32]
    held: NDArray[Any]
    held_aims: NDArray[np.float32]
    labels: NDArray[np.int64]

    def task(self, batch: int, fraction: float) -> Task:
        """Regress the original's embeddings of ``batch`` samples a step, drawn anew each
        time; an epoch is ``fraction`` of the samples."""
        aims = F.normalize(torch.from_numpy(self.aims))

        def draw(rng: np.random.Generator) -> Batch:
            index = rng.choice(len(self.inputs), batch, replace=False)
            return torch.from_numpy(as_input(self.inputs[index])), aims[torch.from_numpy(index)]

        return Task(self.entry, draw, regression_loss, max(1, round(len(aims) * fraction / batch)))

    def judge(self, graph: Graph) -> dict[str, float]:
        """Mean cosine to the original, and the equal error rate, on calibration people."""
        rows = embed(graph, self.entry, as_input(self.held))
        unit, aims = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rows, self.held_aims))
        return {
            "cosine": float((unit * aims).sum(1).mean()),
            "eer": pair_error(rows, self.labels),
        }


def as_input(stored: NDArray[Any]) -> NDArray[np.float32]:
    """What the network reads: of crops the preprocessed middle, windows as they are."""
    if stored.dtype == np.uint8:
        return network_input(stored, FaceSpec())
    return stored.astype(np.float32)


def read_samples(graph: Graph, work: Path) -> tuple[Samples, Samples]:
    """Of the face and of the voice network; made in some six minutes, then kept in ``work``."""
    return (
        Samples("face", **_kept(work / "faces.npz", graph, "face")),
        Samples("voice", **_kept(work / "voices.npz", graph, "voice")),
    )


def _kept(path: Path, graph: Graph, entry: str) -> Arrays:
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    made = _faces() if entry == "face" else _voices()
    for inputs, aims in (("inputs", "aims"), ("held", "held_aims")):
        parts = [made[inputs][i : i + 1024] for i in range(0, len(made[inputs]), 1024)]
        made[aims] = np.concatenate([embed(graph, entry, as_input(part)) for part in parts])
    stream = io.BytesIO()
    np.savez(stream, **made)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, stream.getvalue())
    return made


def _faces() -> Arrays:
    """Each training crop lightly augmented, and blends and moved views of some."""
    faces, held = read_faces(data_directory() / "faces" / "train.zip").split()
    rng = np.random.default_rng((0, 1))
    chosen = rng.choice(len(faces.crops), BLENDS, replace=False)
    crops = [augment(crop, rng, 0.5) for crop in faces.crops]
    crops += [make_view(faces.crops, i, rng) for i in chosen]
    several = np.flatnonzero(np.bincount(held.labels)[held.labels] > 1)[:HELD_FACES]
    return {
        "inputs": np.stack(crops),
        "held": held.crops[several],
        "labels": held.labels[several],
    }


def _voices() -> Arrays:
    """Windows of training speech as the speaker network was trained on; of calibration
    speakers the middle window of up to eight utterances."""
    speech, spec = data_directory() / "speech", VoiceSpec()
    archives = [speech / "train_sentences.zip", speech / "train_words.zip"]
    train, held = read_speech(archives, spec).split()
    rng = np.random.default_rng((0, 2))
    sampler = SpeechSampler(train, read_noise(speech / "noise.zip", spec), spec)
    drawn = [sampler.draw(500, rng).windows.astype(np.float16) for _ in range(WINDOWS // 500)]
    windows, labels = [], []
    for speaker, utterances in enumerate(held.utterances):
        long = [u for u in utterances if len(u) > SHORTEST * spec.rate][:HELD_UTTERANCES]
        for utterance in long if len(long) > 1 else []:
            found = cut_windows(utterance, spec)
            windows.append(found[len(found) // 2])
            labels.append(speaker)
    return {
        "inputs": np.concatenate(drawn),
        "held": np.stack(windows),
        "labels": np.array(labels, np.int64),
    }
