"""Mimic: a small student regresses the selected units of a teacher's top hidden layer.

Luo et al., "Face model compression by distilling knowledge from neurons" (AAAI 2016): units
that carry identity are better supervision than class probabilities, and better than all
units. ``neuron_selection`` chooses them; the same student trained on all units is the
baseline that ``compare_units`` reports beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeid.converters.distillation.neuron_selection import Selection
from edgeid.converters.scores.verification import pair_error
from edgeid.converters.training.checkpoint import Objective
from edgeid.converters.training.training_loop import Batch, TrainOptions, train
from edgeid.runtime.errors import DataError

BATCH = 64

Draw = Callable[[np.random.Generator], Batch]


@dataclass(frozen=True, eq=False)
class TeacherUnits:
    """Inputs of the student (N, *shape) float32, what all d units of the teacher answer to them
    (N, d) float32, and whom they show (N,)."""

    inputs: NDArray[np.float32]
    features: NDArray[np.float32]
    labels: NDArray[Any]

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or not len(self.inputs) == len(self.features) > 0:
            raise DataError(
                f"inputs {self.inputs.shape} and features {self.features.shape} do not fit"
            )
        if self.labels.shape != (len(self.features),):
            raise DataError(f"labels {self.labels.shape}: needs ({len(self.features)},)")
        if not np.isfinite(self.features).all():
            raise DataError("the teacher's features hold NaN or infinity")

    def drawing(self, batch: int) -> Draw:
        """Draws batches (inputs, features) with replacement."""

        def draw(rng: np.random.Generator) -> Batch:
            chosen = rng.integers(len(self.inputs), size=batch)
            return torch.from_numpy(self.inputs[chosen]), torch.from_numpy(self.features[chosen])

        return draw

    def spread(self) -> NDArray[np.float32]:
        """(d,) standard deviation of each unit; 1 for a unit that never changes."""
        deviation = self.features.std(axis=0)
        return np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32)


def unit_loss(predicted: Tensor, target: Tensor, spread: Tensor) -> Tensor:
    """1/2 the squared error in units of ``spread`` (k,), mean over units and samples (N, k).

    The mean over units, in place of the sum, lets students of few and of many units train at
    the same rate; dividing by the spread lets a faint unit count as much as a strong one.
    """
    return 0.5 * ((predicted.float() - target) / spread).square().mean()


class MimicObjective(Objective):
    """Regression of some of the teacher's units by a network (N, *shape) -> (N, k).

    Batches are (inputs, features), with all d units in the features.

    Raises:
        DataError: units outside the layer, or none.
    """

    units: Tensor
    scale: Tensor

    def __init__(
        self, network: nn.Module, units: NDArray[np.intp], spread: NDArray[np.float32]
    ) -> None:
        super().__init__()
        if units.ndim != 1 or not len(units) or units.min() < 0 or units.max() >= len(spread):
            raise DataError(f"units {units!r:.80} of a layer that has {len(spread)}")
        self.network = network
        self.register_buffer("units", torch.from_numpy(units.astype(np.int64)))
        self.register_buffer("scale", torch.from_numpy(spread[units].astype(np.float32)))

    def loss(self, batch: Batch, progress: float) -> Tensor:  # noqa: ARG002
        inputs, features = batch
        return unit_loss(self.network(inputs), features[:, self.units], self.scale)

    def shape(self) -> dict[str, Any]:
        return {"units": len(self.units)}


@dataclass(frozen=True)
class MimicOptions:
    """How ``compare_units`` trains, and the folder of its checkpoints, from which it resumes."""

    training: TrainOptions = field(default_factory=TrainOptions)
    work: Path = Path("work")


@dataclass(frozen=True)
class UnitsReport:
    """One student on held-out people.

    Attributes:
        units: how many it regresses.
        unexplained: share of the units' variance that it does not explain, 0 is perfect.
        error: equal error rate of its outputs, by cosine over all pairs.
        teacher_error: of the same units of the teacher.
    """

    units: int
    unexplained: float
    error: float
    teacher_error: float


@dataclass(frozen=True)
class MimicReport:
    """The same student taught by all units and by the selected ones."""

    all_units: UnitsReport
    selected: UnitsReport

    def lines(self) -> tuple[str, ...]:
        """For people."""
        return tuple(
            f"{name}, {r.units} units: EER {r.error:.2%} (teacher {r.teacher_error:.2%}), "
            f"{r.unexplained:.1%} of the units' variance unexplained"
            for name, r in (("all", self.all_units), ("selected", self.selected))
        )


def train_mimic(objective: MimicObjective, draw: Draw, options: TrainOptions, out: Path) -> Path:
    """Train the student, with checkpoints at ``out`` from which it resumes.

    ``draw`` gives (inputs, features) as ``TeacherUnits.drawing`` does; one of your own may
    augment. Raises DataError for a checkpoint of another training.
    """
    return train(objective, draw, options, out, f"mimic, {len(objective.units)} units")


def compare_units(
    make_network: Callable[[int], nn.Module],
    data: TeacherUnits,
    held_out: TeacherUnits,
    selection: Selection,
    options: MimicOptions | None = None,
) -> MimicReport:
    """Train one student on all units, one on the selected, and test both on other people.

    Args:
        make_network: number of units -> a fresh student that gives so many outputs.
        held_out: people who are not in ``data``.
        selection: of the units of ``data``.

    Raises:
        DataError: the layers of data and selection differ, or people are in both sets.
    """
    options = options or MimicOptions()
    size = data.features.shape[1]
    if not len(selection.fisher) == size == held_out.features.shape[1]:
        raise DataError(
            f"the layer has {size} units, held out {held_out.features.shape[1]}, "
            f"the selection is of {len(selection.fisher)}"
        )
    both = np.intersect1d(data.labels, held_out.labels)
    if len(both):
        raise DataError(f"{len(both)} people are in training and held out, such as {both[0]}")
    draw, reports = data.drawing(options.training.batch), []
    for name, units in (("all", np.arange(size)), ("selected", selection.indices)):
        torch.manual_seed(options.training.seed)
        objective = MimicObjective(make_network(len(units)), units, data.spread())
        train_mimic(objective, draw, options.training, options.work / f"mimic-{name}.pt")
        reports.append(_report(objective, held_out))
    return MimicReport(*reports)


def _report(objective: MimicObjective, held_out: TeacherUnits) -> UnitsReport:
    predicted = embed(objective.network, held_out.inputs)
    target = held_out.features[:, objective.units.numpy()]
    scale = objective.scale.numpy()
    missed = (((predicted - target) / scale) ** 2).mean()
    total = (((target - target.mean(axis=0)) / scale) ** 2).mean()
    return UnitsReport(
        units=target.shape[1],
        unexplained=float(missed / max(total, 1e-12)),
        error=pair_error(predicted, held_out.labels),
        teacher_error=pair_error(target, held_out.labels),
    )


def embed(network: nn.Module, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outputs (N, k) of a network in evaluation mode, in batches."""
    network.eval()
    with torch.no_grad():
        parts = [
            network(torch.from_numpy(inputs[i : i + BATCH])).float().numpy()
            for i in range(0, len(inputs), BATCH)
        ]
    return np.concatenate(parts)
