"""Train the face and the voice network: seeds, progress, checkpoints, resumption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from edgeid.converters.graphs.embedding_loss import (
    STRUCTURE_WEIGHT,
    embedding_loss,
    structure_error,
)
from edgeid.converters.networks.cnn20 import CNN20, settle_statistics
from edgeid.converters.networks.cnn20_graph import settle_norms
from edgeid.converters.networks.weight_average import average_networks
from edgeid.converters.training.checkpoint import (
    Checkpoint,
    CNN20Objective,
    Objective,
    is_model_file,
    start_network,
)
from edgeid.converters.training.faces import augment, data_directory, read_faces
from edgeid.converters.training.margin import MarginSoftmax
from edgeid.converters.training.muon import Muon
from edgeid.converters.training.speaker_teacher import DIM, teach_speakers
from edgeid.converters.training.speech import SpeechSampler, read_noise, read_speech
from edgeid.converters.training.teacher import OnnxTeacher, label_view
from edgeid.runtime.blas import blas_threads
from edgeid.runtime.errors import DataError
from edgeid.runtime.voice import VoiceSpec

FACE_MEAN, FACE_SCALE = 127.5, 1 / 128
FACE_LEFT, FACE_WIDTH = 8, 96  # the columns of a 112x112 crop that the network sees

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class TrainOptions:
    """How long and how fast.

    Attributes:
        steps: optimiser steps of the one-cycle schedule.
        batch: samples a step.
        rate: peak learning rate, which for ``Muon`` is some tenth of that for SGD.
        optimiser: "muon" needs fewer samples.
        seed: of weights, sampling and augmentation.
        threads: of torch; 2 collapse when anything else uses the cores.
        save_every: steps between checkpoints.
        start: a finished checkpoint whose network and heads are trained further, at the full
            margin; or a model file, whose network is, with new heads; None starts from random
            weights.
        keep: share of the network at ``start`` in the weights of the result, 0..1: less of what
            it could do is forgotten, see ``average_networks``.
        progress: whether to show a progress bar.
    """

    steps: int = 2000
    batch: int = 128
    rate: float = 0.2
    optimiser: Literal["sgd", "muon"] = "sgd"
    seed: int = 1
    threads: int = 1
    save_every: int = 100
    start: Path | None = None
    keep: float = 0.0
    progress: bool = True


FACE_OPTIONS = TrainOptions(steps=4200, rate=0.02, optimiser="muon")
VOICE_OPTIONS = TrainOptions(steps=3000, rate=0.02, optimiser="muon")
OTHER_RATE = 0.15  # of what is no matrix, relative to the rate
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
    work: Path = Path("work"),
) -> Path:
    """Train a speaker CNN-20 from ``speech/train_*.zip``; write a checkpoint to ``out``.

    A checkpoint already at ``out`` is resumed. The calibration speakers are left out.

    Args:
        taught: learn from a public speaker encoder too, see ``SpeakerTeacher``, of utterances
            with at least so many seconds of speech; it confuses short ones.

    Raises:
        DataError: data or checkpoint is missing or does not fit.
    """
    torch.set_num_threads(options.threads)
    data, spec = data or data_directory(), spec or VoiceSpec()
    folder = data / "speech"
    archives = [folder / "train_sentences.zip", folder / "train_words.zip"]
    speech, _ = read_speech(archives, spec).split()
    sampler = SpeechSampler(speech, read_noise(folder / "noise.zip", spec), spec)

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


def train(
    objective: Objective,
    draw: Callable[[np.random.Generator], Batch],
    options: TrainOptions,
    out: Path,
    title: str,
) -> Path:
    """Train ``objective`` on batches from ``draw``, with checkpoints at ``out``; resumes them.

    Each step draws from a generator of its own, seeded by the step: a resumed training sees
    what an unbroken one would have seen.
    """
    if not 0 <= options.keep <= 1 or (options.keep and options.start is None):
        raise DataError(f"keep {options.keep} must lie in 0..1, and needs a network to start from")
    torch.set_num_threads(options.threads)
    objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser, schedule = _optimiser(objective, options)
    checkpoint = Checkpoint(out, objective, optimiser, schedule)
    first = checkpoint.resume()
    if first == 0 and options.start is not None:
        checkpoint.start_from(options.start, title)
        if is_model_file(options.start):
            settle_norms(objective.network, _inputs(draw, options, 10))
    bar = tqdm(
        range(first, options.steps),
        initial=first,
        total=options.steps,
        desc=title,
        disable=not options.progress,
    )
    trained_heads = options.start is not None and not is_model_file(options.start)
    smooth = 0.0
    for step in bar:
        with blas_threads(options.threads):
            batch = draw(np.random.default_rng((options.seed, step)))
        objective.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective.loss(batch, 1.0 if trained_heads else step / options.steps)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(objective.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        smooth = loss.item() if step == first else 0.98 * smooth + 0.02 * loss.item()
        bar.set_postfix(loss=f"{smooth:.4f}")
        if (step + 1) % options.save_every == 0 and step + 1 < options.steps:
            checkpoint.save(step + 1)
    if first < options.steps:
        settle_statistics(objective.network, _inputs(draw, options, 20))
        if options.keep and options.start is not None:
            assert isinstance(objective.network, CNN20)
            start = start_network(options.start, title)
            mean = average_networks(start, objective.network, options.keep)
            settle_norms(mean, _inputs(draw, options, 10))
            objective.network.load_state_dict(mean.state_dict())
        checkpoint.save(options.steps)
    return out


def _inputs(
    draw: Callable[[np.random.Generator], Batch], options: TrainOptions, count: int
) -> list[Tensor]:
    """Inputs of the network in batches that no step is trained on."""
    seeds = [(options.seed, options.steps + i) for i in range(count)]
    return [draw(np.random.default_rng(seed))[0] for seed in seeds]


def _optimiser(
    objective: Objective, options: TrainOptions
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimiser with its one-cycle schedule."""
    one_cycle = torch.optim.lr_scheduler.OneCycleLR
    if options.optimiser == "sgd":
        sgd = torch.optim.SGD(
            objective.parameters(), options.rate, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        return sgd, one_cycle(sgd, options.rate, total_steps=options.steps, pct_start=0.15)
    matrices = [p for p in objective.network.parameters() if p.ndim > 1]
    known = {id(p) for p in matrices}
    others = [p for p in objective.parameters() if id(p) not in known]
    muon = Muon(matrices, others, options.rate, other_rate=OTHER_RATE * options.rate)
    rates = [group["lr"] for group in muon.param_groups]
    return muon, one_cycle(muon, rates, options.steps, pct_start=0.1, cycle_momentum=False)
