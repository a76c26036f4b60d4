"""Mimic as a pass: a small student of a network's units takes its place (paper 002)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from edgeid.converters.distillation.lessons import Lessons, Standardised, hidden_units, take_lessons
from edgeid.converters.distillation.mimic import MimicObjective, train_mimic
from edgeid.converters.distillation.neuron_selection import SelectionOptions, select_units
from edgeid.converters.distillation.student_entry import (
    check_replaced,
    count_weights,
    embedding_size,
    make_student,
    replace_entry,
)
from edgeid.converters.networks.student import CHANNELS, UNITS
from edgeid.converters.recipe import Context, Figures, Pass, PassResult
from edgeid.converters.training.training_loop import TrainOptions
from edgeid.runtime.graph import Graph


@dataclass(frozen=True)
class Mimic(Pass):
    """Replace networks by students that regress their units.

    The student (``CompactStudent``) takes the same input and gives an embedding of the same
    size in the same place: all units of the embedding are regressed, and beside them, as
    further supervision that is cut off afterwards, units of the top hidden layers. Where the
    samples have labels, those are the ones that ``select_units`` keeps; all of them otherwise.

    Attributes:
        entries: to change; None: all that have samples.
        channels, units: of the student's stages.
        steps, batch, rate: of the training.
        views: of each sample, the sample itself and blends with others; see ``Lessons``.
        selection: which hidden units are worth regressing.
    """

    entries: tuple[str, ...] | None = None
    channels: tuple[int, ...] = CHANNELS
    units: tuple[int, ...] = UNITS
    steps: int = 3000
    batch: int = 64
    rate: float = 0.4
    views: int = 4
    selection: SelectionOptions = field(default_factory=SelectionOptions)

    name: ClassVar[str] = "mimic"

    def requires(self, graph: Graph, context: Context) -> None:
        """Raise DataError without samples, GraphError where the student is not smaller."""
        for entry in self._entries(context):
            context.inputs(entry)
            make_student(graph, entry, self.channels, self.units)

    def call(self, graph: Graph, context: Context) -> PassResult:
        """Train a student for each entry; an interrupted training goes on from its checkpoint."""
        torch.set_num_threads(context.threads)
        lines, figures, changed = [], Figures(), graph
        for entry in self._entries(context):
            lessons = take_lessons(graph, entry, context, self.views, hidden_units)
            kept = self.kept_units(graph, entry, context, lessons)
            changed = self._replaced(changed, entry, context, lessons, kept)
            hidden = len(kept) - embedding_size(graph, entry)
            weights = count_weights(graph, entry), count_weights(changed, entry)
            lines.append(
                f"{entry}: {weights[0]:,} -> {weights[1]:,} weights, {hidden} hidden units"
            )
            figures |= {f"weights/{entry}": weights[1], f"hidden units/{entry}": hidden}
        for entry in self._entries(context):
            _checkpoint(context, entry).unlink(missing_ok=True)
        return PassResult(changed, tuple(lines), figures)

    def ensures(self, before: Graph, after: Graph, context: Context) -> None:
        """Raise GraphError unless smaller networks are in the entries' places, and no others."""
        check_replaced(before, after, self._entries(context))

    def _entries(self, context: Context) -> tuple[str, ...]:
        return tuple(context.samples) if self.entries is None else self.entries

    def kept_units(
        self, graph: Graph, entry: str, context: Context, lessons: Lessons
    ) -> NDArray[np.intp]:
        """Units to regress: the embedding's, then those of the hidden layers."""
        everything = np.arange(lessons.answers.shape[2])
        if entry not in context.labels:
            return everything
        found = select_units(lessons.answers[0], context.labels[entry], self.selection)
        size = embedding_size(graph, entry)
        return np.asarray(np.union1d(everything[:size], found.indices), np.intp)

    def _replaced(
        self, graph: Graph, entry: str, context: Context, lessons: Lessons, kept: NDArray[np.intp]
    ) -> Graph:
        size = embedding_size(graph, entry)
        torch.manual_seed(context.seed)
        student = make_student(graph, entry, self.channels, self.units, len(kept) - size)
        taught = Standardised.of(lessons.answers)
        objective = MimicObjective(student, kept, np.ones(lessons.answers.shape[2], np.float32))
        options = TrainOptions(
            steps=self.steps, batch=self.batch, rate=self.rate, seed=context.seed,
            threads=context.threads, progress=context.progress,
        )  # fmt: skip
        draw = taught.drawing(lessons, self.batch)
        train_mimic(objective, draw, options, _checkpoint(context, entry))
        student.keep_outputs(size, taught.mean, taught.spread)
        return replace_entry(graph, entry, student.eval())


def _checkpoint(context: Context, entry: str) -> Path:
    return context.work / f"mimic-{entry}.pt"
