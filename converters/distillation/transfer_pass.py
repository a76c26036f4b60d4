"""Transfer as a pass: a student of a network's class probabilities takes its place (paper 001)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from edgeid.converters.distillation.lessons import (
    Lessons,
    Standardised,
    take_lessons,
    unit_embedding,
)
from edgeid.converters.distillation.mimic import MimicObjective, train_mimic
from edgeid.converters.distillation.student_entry import (
    check_replaced,
    count_weights,
    embedding_size,
    make_student,
    replace_entry,
)
from edgeid.converters.distillation.transfer import (
    PairSampler,
    SiameseObjective,
    TransferObjective,
    class_log_probabilities,
    train_siamese,
    train_transfer,
)
from edgeid.converters.networks.student import CHANNELS, UNITS, CompactStudent
from edgeid.converters.recipe import Context, Figures, Pass, PassResult
from edgeid.converters.training.training_loop import Batch, TrainOptions
from edgeid.runtime.errors import DataError
from edgeid.runtime.graph import Graph

Draw = Callable[[np.random.Generator], Batch]


@dataclass(frozen=True)
class Transfer(Pass):
    """Replace networks by students trained in the two steps of ``transfer``, after a first one.

    The student (``CompactStudent``) takes the same input and gives an embedding of the same
    size. Teacher and student tell the identities of the samples apart by the cosine to the
    teacher's mean embedding of each; the student follows the teacher's log-probabilities, in
    samples and in blends of them, and classifies the samples. Then pairs of samples are pulled
    together or apart. Before both it regresses the teacher's embedding: from random weights the
    log-probabilities of hundreds of people are a poor guide. Needs labels.

    Attributes:
        entries: to change; None: all that have samples.
        channels, units: of the student's stages.
        start_steps, start_rate: of the regression of the embedding; 0 steps leave it out.
        steps, batch, rate: of the first training of the paper.
        stages: lambda in equal parts of it. The paper's are 1e-9, 1e-6 and 1e-3; followed
            more closely, a student learns more of people whom the samples do not show.
        views: of each sample, the sample itself and blends with others; see ``Lessons``.
        scale: of cosines as logits. At 30 the teacher is certain of all whom it was shown, and
            what the many log-probabilities then tell is how certain, rather than of whom.
        siamese_steps, siamese_rate: of the second, with ``batch`` / 2 pairs; 0 steps leave
            it out.
        margin, contrastive: see ``SiameseObjective``; embeddings of unit length are compared,
            and the last of ``stages`` goes on.
    """

    entries: tuple[str, ...] | None = None
    channels: tuple[int, ...] = CHANNELS
    units: tuple[int, ...] = UNITS
    start_steps: int = 3000
    start_rate: float = 0.4
    steps: int = 1300
    batch: int = 64
    rate: float = 0.01
    stages: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    views: int = 4
    scale: float = 10.0
    siamese_steps: int = 300
    siamese_rate: float = 0.003
    margin: float = 1.2
    contrastive: float = 1.0

    name: ClassVar[str] = "transfer"

    def requires(self, graph: Graph, context: Context) -> None:
        """Raise DataError without samples or labels, GraphError where a student is not smaller."""
        for entry in self._entries(context):
            context.inputs(entry)
            PairSampler(context.identities(entry))
            make_student(graph, entry, self.channels, self.units)
        if not (self.scale > 0 and min(self.start_steps, self.siamese_steps) >= 0):
            raise DataError(f"needs scale > 0, start_steps and siamese_steps >= 0: {self}")

    def call(self, graph: Graph, context: Context) -> PassResult:
        """Train a student for each entry; an interrupted training goes on from its checkpoint."""
        torch.set_num_threads(context.threads)
        lines, figures, changed = [], Figures(), graph
        for entry in self._entries(context):
            student = self._trained(graph, entry, context)
            changed = replace_entry(changed, entry, student)
            weights = count_weights(graph, entry), count_weights(changed, entry)
            times = weights[0] / weights[1]
            lines.append(f"{entry}: {weights[0]:,} -> {weights[1]:,} weights, {times:.1f}x fewer")
            figures[f"weights/{entry}"] = weights[1]
        for entry in self._entries(context):
            for stage in ("start", "transfer", "siamese"):
                _checkpoint(context, stage, entry).unlink(missing_ok=True)
        return PassResult(changed, tuple(lines), figures)

    def ensures(self, before: Graph, after: Graph, context: Context) -> None:
        """Raise GraphError unless smaller networks are in the entries' places, and no others."""
        check_replaced(before, after, self._entries(context))

    def _entries(self, context: Context) -> tuple[str, ...]:
        return tuple(context.samples) if self.entries is None else self.entries

    def _trained(self, graph: Graph, entry: str, context: Context) -> CompactStudent:
        lessons = take_lessons(graph, entry, context, self.views, unit_embedding)
        labels = np.unique(context.identities(entry), return_inverse=True)[1].astype(np.int64)
        prototypes = mean_embeddings(lessons.answers[0], labels)
        torch.manual_seed(context.seed)
        student = make_student(graph, entry, self.channels, self.units)
        size = embedding_size(graph, entry)
        if self.start_steps:
            options = self._options(context, self.start_steps, self.start_rate)
            out = _checkpoint(context, "start", entry)
            regress_embedding(student, lessons, options, out)
        first = TransferObjective(student, size, len(prototypes), self.stages, normalised=True)
        first.follow(prototypes, self.scale)
        taught = _Taught(lessons, labels, prototypes, self.scale)
        options = self._options(context, self.steps, self.rate)
        out = _checkpoint(context, "transfer", entry)
        train_transfer(first, taught.drawing(self.batch), out, options)
        if self.siamese_steps:
            second = SiameseObjective(
                first, self.margin, self.contrastive, size,
                normalised=True, regression=self.stages[-1],
            )  # fmt: skip
            options = self._options(context, self.siamese_steps, self.siamese_rate)
            out = _checkpoint(context, "siamese", entry)
            train_siamese(second, taught.pairs(max(1, self.batch // 2)), out, options)
            student.project_outputs(second.project)
        return student.eval()

    def _options(self, context: Context, steps: int, rate: float) -> TrainOptions:
        return TrainOptions(
            steps=steps, batch=self.batch, rate=rate, seed=context.seed,
            threads=context.threads, progress=context.progress,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Taught:
    """Lessons of samples with labels (N,), and the prototypes (K, d) of the classes."""

    lessons: Lessons
    labels: NDArray[np.int64]
    prototypes: NDArray[np.float32]
    scale: float

    def drawing(self, batch: int) -> Draw:
        def draw(rng: np.random.Generator) -> Batch:
            inputs, view, index = self.lessons.draw(batch, rng)
            labels = np.where(view == 0, self.labels[index], -1)
            return inputs, torch.from_numpy(labels), self._log_probabilities(view, index)

        return draw

    def pairs(self, count: int) -> Draw:
        sampler = PairSampler(self.labels)

        def draw(rng: np.random.Generator) -> Batch:
            members = sampler.draw(count, rng)[:2]
            plain = np.zeros(count, np.intp)
            inputs = (torch.from_numpy(self.lessons.inputs(plain, index)) for index in members)
            labels = (torch.from_numpy(self.labels[index]) for index in members)
            teacher = (self._log_probabilities(plain, index) for index in members)
            return (*inputs, *labels, *teacher)

        return draw

    def _log_probabilities(self, view: NDArray[np.intp], index: NDArray[np.intp]) -> torch.Tensor:
        rows = self.lessons.answers[view, index]
        return torch.from_numpy(class_log_probabilities(rows, self.prototypes, self.scale))


def regress_embedding(
    student: CompactStudent, lessons: Lessons, options: TrainOptions, out: Path
) -> None:
    """Train a student to give the teacher's embedding, times the root of its size; resumes."""
    size = lessons.answers.shape[2]
    units = Standardised.of(lessons.answers)
    objective = MimicObjective(student, np.arange(size), np.ones(size, np.float32))
    train_mimic(objective, units.drawing(lessons, options.batch), options, out)
    root = float(np.sqrt(size))  # features of unit spread: the rates are for such
    student.keep_outputs(size, units.mean * root, units.spread * root)


def mean_embeddings(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(K, d) mean embedding of each of the labels 0..K - 1."""
    sums = np.zeros((int(labels.max()) + 1, embeddings.shape[1]), np.float64)
    np.add.at(sums, labels, embeddings)
    return np.asarray(sums / np.bincount(labels)[:, None], np.float32)


def _checkpoint(context: Context, stage: str, entry: str) -> Path:
    return context.work / f"{stage}-{entry}.pt"
