"""Train the face and the voice network: their data, teachers and losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeid.converters.graphs.embedding_loss import (
    STRUCTURE_WEIGHT,
    embedding_loss,
    structure_error,
)
from edgeid.converters.networks.cnn20 import CNN20
from edgeid.converters.training.checkpoint import CNN20Objective
from edgeid.converters.training.faces import augment, data_directory, read_faces
from edgeid.converters.training.margin import MarginSoftmax
from edgeid.converters.training.speaker_teacher import DIM, teach_speakers
from edgeid.converters.training.speech import SpeechSampler, read_training
from edgeid.converters.training.teacher import OnnxTeacher, label_view
from edgeid.converters.training.training_loop import Batch, TrainOptions, train
from edgeid.runtime.voice import VoiceSpec

FACE_MEAN, FACE_SCALE = 127.5, 1 / 128
FACE_LEFT, FACE_WIDTH = 8, 96  # the columns of a 112x112 crop that the network sees

FACE_OPTIONS = TrainOptions(steps=4200, rate=0.02, optimiser="muon")
VOICE_OPTIONS = TrainOptions(steps=3000, rate=0.02, optimiser="muon")
LESSON_WEIGHT = 20.0  # of a speaker encoder's lessons beside the margin softmax
# Of the faces in a batch, crops as they are, which carry their identity; and how much all are
# augmented. At first a network underfits; one that is trained further begins to know the crops.
PLAIN_SHARE, STRENGTH = 0.5, 0.5
FURTHER_PLAIN_SHARE, FURTHER_STRENGTH = 0.3, 0.8


class FaceObjective(CNN20Objective):
    """Regression of the teacher's embeddings, plus a margin softmax on identities.

    ``1 - cos`` to the teacher, five times the squared error of the batch's similarity
    matrix (as in paper 001's spirit, on embeddings in place of log-probabilities), and a
    lightly weighted AAM softmax on the crops whose identity has several.
    """

    def __init__(self, width: float, dim: int, classes: int) -> None:
        super().__init__()
        self.network = CNN20(width, dim)
        self.head = MarginSoftmax(dim, classes)

    def loss(self, batch: Batch, progress: float) -> Tensor:
        x, target, label = batch  # label -1: no identity loss
        embedding = self.network(x).float()
        loss = embedding_loss(functional.normalize(embedding), target)
        known = label >= 0
        if known.any():
            loss = loss + 0.02 * self.head(embedding[known], label[known], min(1, 2 * progress))
        return loss


class VoiceObjective(CNN20Objective):
    """Margin softmax over all training speakers, the margin rising over the first half; and,
    where there is one, a public encoder's embeddings, foretold from ours by one matrix, and
    its similarities, which ours shall have as they are."""

    def __init__(self, width: float, dim: int, classes: int, lesson: int = 0) -> None:
        super().__init__()
        self.network = CNN20(width, dim, average_time=True)
        self.head = MarginSoftmax(dim, classes)
        self.foretell = nn.Linear(dim, lesson, bias=False) if lesson else None

    def loss(self, batch: Batch, progress: float) -> Tensor:
        x, label, target = batch  # a target of zeros: the teacher was not asked
        embedding = self.network(x).float()
        loss: Tensor = self.head(embedding, label, min(1, 2 * progress))
        asked = target.any(dim=1)
        if self.foretell is not None and asked.any():
            unit, target = functional.normalize(embedding[asked]), target[asked]
            cosine = 1 - functional.cosine_similarity(self.foretell(unit), target)
            lesson = cosine.mean() + STRUCTURE_WEIGHT * structure_error(unit, target)
            loss = loss + LESSON_WEIGHT * asked.float().mean() * lesson
        return loss


def train_face(
    out: Path,
    options: TrainOptions,
    *,
    width: float = 0.5,
    dim: int = 128,
    views: int = 5,
    data: Path | None = None,
    teacher: Path | None = None,
    work: Path = Path("work"),
) -> Path:
    """Train a face CNN-20 from ``faces/train.zip`` and a teacher; write a checkpoint to ``out``.

    A checkpoint already at ``out`` is resumed. The calibration people are left out.

    Args:
        views: of every crop that the teacher is asked about, see ``label_view``; each takes
            some 200 MB of memory and of the folder ``work``.

    Raises:
        DataError: data, teacher or checkpoint is missing or does not fit.
    """
    data = data or data_directory()
    teacher = teacher or data.parent / "models" / "mobilefacenet.onnx"
    faces, _ = read_faces(data / "faces" / "train.zip").split()
    source = OnnxTeacher(teacher, options.threads)
    labelled = [label_view(faces, source, number, work / "teacher") for number in range(views)]
    counts = np.bincount(faces.labels)
    classes = np.flatnonzero(counts >= 3)
    renumbered = np.full(len(counts), -1)
    renumbered[classes] = np.arange(len(classes))

    plain, strength = (
        (FURTHER_PLAIN_SHARE, FURTHER_STRENGTH) if options.start else (PLAIN_SHARE, STRENGTH)
    )

    def draw(rng: np.random.Generator) -> Batch:
        index = rng.integers(len(faces.crops), size=options.batch)
        chosen = rng.integers(views, size=options.batch)
        chosen[rng.random(options.batch) < plain] = 0
        pairs = list(zip(index, chosen, strict=True))
        crops = np.stack([augment(labelled[v].crops[i], rng, strength) for i, v in pairs])
        targets = np.stack([labelled[v].targets[i] for i, v in pairs])
        # Views may be blends of two people: only the plain crop carries its identity.
        label = np.where(chosen == 0, renumbered[faces.labels[index]], -1)
        return face_input(crops), torch.from_numpy(targets), torch.from_numpy(label)

    torch.manual_seed(options.seed)
    objective = FaceObjective(width, dim, len(classes))
    return train(objective, draw, options, out, "face")


def face_input(crops: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    """(N, 112, 112) uint8 -> (N, 1, 112, 96) float32 as the model file prescribes."""
    columns = crops[:, None, :, FACE_LEFT : FACE_LEFT + FACE_WIDTH]
    return (torch.from_numpy(np.ascontiguousarray(columns)).float() - FACE_MEAN) * FACE_SCALE


def train_voice(
    out: Path,
    options: TrainOptions,
    *,
    width: float = 0.5,
    dim: int = 128,
    data: Path | None = None,
    spec: VoiceSpec | None = None,
    taught: float | None = None,
    strength: float = 1.0,
    work: Path = Path("work"),
) -> Path:
    """Train a speaker CNN-20 from ``speech/train_*.zip``; write a checkpoint to ``out``.

    A checkpoint already at ``out`` is resumed. The calibration speakers are left out.

    Args:
        taught: learn from a public speaker encoder too, see ``SpeakerTeacher``, of utterances
            with at least so many seconds of speech; it confuses short ones.
        strength: of augmentation, see ``SpeechSampler``.

    Raises:
        DataError: data or checkpoint is missing or does not fit.
    """
    torch.set_num_threads(options.threads)
    data, spec = data or data_directory(), spec or VoiceSpec()
    speech, noise = read_training(data, spec)
    sampler = SpeechSampler(speech, noise, spec, strength=strength)

    lessons: tuple[np.ndarray[Any, np.dtype[np.float32]], ...] = ()
    lesson = 0
    if taught is not None:
        lessons = teach_speakers(speech.at_all_speeds(), work / "teacher", taught).targets
        lesson = DIM

    def draw(rng: np.random.Generator) -> Batch:
        batch = sampler.draw(options.batch, rng)
        targets = np.zeros((len(batch.classes), lesson), np.float32)
        if lessons:
            pairs = zip(batch.classes, batch.utterances, strict=True)
            targets[:] = [lessons[name][utterance] for name, utterance in pairs]
        return tuple(torch.from_numpy(x) for x in (batch.windows, batch.classes, targets))

    torch.manual_seed(options.seed)
    objective = VoiceObjective(width, dim, sampler.classes, lesson)
    return train(objective, draw, options, out, "voice")
