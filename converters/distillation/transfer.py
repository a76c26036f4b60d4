"""Transfer: teacher -> compressed student -> Siamese training (paper 001, section 3).

1. ``TransferObjective``: cross-entropy on identities plus lambda times the Euclidean loss
   between the class log-probabilities of teacher and student; lambda rises in three stages.
2. ``SiameseObjective``: on pairs, cross-entropy of both members plus the contrastive loss of
   a 256-dimensional linear projection of the student's 1024 features.

The student is ``TransferStudent`` (Table 1) or any network that gives features (N, F).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgeid.converters.training.checkpoint import Objective
from edgeid.converters.training.training_loop import Batch, TrainOptions, train
from edgeid.runtime.errors import DataError

STAGES = (1e-9, 1e-6, 1e-3)
PROJECTION = 256
# The paper starts at rate 0.001; one cycle of a batch of 128 bears more.
TRANSFER_OPTIONS = TrainOptions(rate=0.02)
SIAMESE_OPTIONS = TrainOptions(rate=0.005, batch=64)

Draw = Callable[[np.random.Generator], Batch]


def class_log_probabilities(
    embeddings: ArrayLike, prototypes: ArrayLike, scale: float = 30.0
) -> NDArray[np.float32]:
    """(N, K) class log-probabilities of a teacher that gives embeddings (N, d).

    A teacher without a softmax layer for the classes at hand gets one: ``scale`` times the
    cosine to a prototype of each class (K, d), such as the mean of its normalised embeddings.

    Raises:
        DataError: shapes that do not fit, zero or not finite rows.
    """
    rows, centres = np.asarray(embeddings, np.float64), np.asarray(prototypes, np.float64)
    if rows.ndim != 2 or centres.ndim != 2 or rows.shape[1:] != centres.shape[1:]:
        raise DataError(f"embeddings {rows.shape} and prototypes {centres.shape} do not fit")
    units = []
    for each in (rows, centres):
        lengths = np.linalg.norm(each, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and (lengths > 0).all()):
            raise DataError("an embedding or a prototype is zero, NaN or infinite")
        units.append(each / lengths)
    logits = scale * units[0] @ units[1].T
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return np.asarray(logits, np.float32)


def log_probability_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1/(2N) sum_n ||z_teacher - z_student||^2 over log-probabilities (N, K): equation (1)."""
    return (teacher - student).square().sum(dim=1).mean() / 2


def contrastive_loss(x1: Tensor, x2: Tensor, same: Tensor, margin: float) -> Tensor:
    """1/(2N) sum_n y d^2 + (1 - y) max(margin - d, 0)^2, d = ||x1 - x2||: equation (4).

    Args:
        x1, x2: embeddings (N, k).
        same: (N,) 1 for one identity, 0 for two.
    """
    squared = (x1 - x2).square().sum(dim=1)
    # the root's slope is infinite at 0, where two embeddings of different people may start
    distance = (squared + 1e-12).sqrt()
    apart = (margin - distance).clamp(min=0).square()
    return torch.where(same > 0, squared, apart).mean() / 2


class TransferObjective(Objective):
    """Classification and regression of the teacher's log-probabilities at the same time.

    Batches are (inputs, labels (N,) int64, teacher log-probabilities (N, classes)). A label of
    -1 says that nobody knows who it is, as in a blend of two people: there the teacher alone
    is followed.

    Args:
        network: (N, *shape) -> features (N, size).
        size: number of features.
        classes: number of identities.
        stages: lambda in equal parts of the training; the paper's, whose sum over classes
            makes them depend on the number of classes.
        normalised: whether features are scaled to unit length before they are classified. The
            paper's are not; with a classifier of scaled cosines, as ``follow`` gives, the sum
            over classes would drive features of any length out of all bounds.
    """

    def __init__(
        self,
        network: nn.Module,
        size: int,
        classes: int,
        stages: tuple[float, ...] = STAGES,
        normalised: bool = False,
    ) -> None:
        super().__init__()
        if not stages or min(stages) < 0 or min(size, classes) < 1:
            raise DataError(f"needs stages >= 0, features and classes: {stages}, {size}, {classes}")
        self.network = network
        self.classify = nn.Linear(size, classes)
        self.stages, self.normalised = stages, normalised

    def log_probabilities(self, features: Tensor) -> Tensor:
        """(N, classes) of features (N, size)."""
        x = functional.normalize(features) if self.normalised else features
        return functional.log_softmax(self.classify(x), dim=1)

    def weight(self, progress: float) -> float:
        """lambda at ``progress`` 0..1 of the training."""
        return self.stages[min(int(progress * len(self.stages)), len(self.stages) - 1)]

    def loss(self, batch: Batch, progress: float) -> Tensor:
        inputs, labels, teacher = batch
        features = self.network(inputs).float()
        # float32 beyond the network: log-probabilities of bfloat16 keep three digits
        with torch.autocast("cpu", enabled=False):
            student = self.log_probabilities(features)
            loss = self.weight(progress) * log_probability_loss(student, teacher)
            known = labels >= 0
            if known.any():
                loss = loss + functional.nll_loss(student[known], labels[known])
            return loss

    def follow(self, prototypes: NDArray[np.float32], scale: float) -> None:
        """Start with the teacher's classifier, as ``class_log_probabilities`` takes it.

        The features then are drawn towards the teacher's embedding (of unit length), whose
        size they must have. With random weights any linear map of it would do as well.
        """
        rows = prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)
        with torch.no_grad():
            self.classify.weight.copy_(torch.from_numpy(scale * rows))
            self.classify.bias.zero_()

    def shape(self) -> dict[str, Any]:
        return {"classes": self.classify.out_features}


class SiameseObjective(Objective):
    """Both members of a pair are classified, and their projections pulled together or apart.

    Batches are (inputs, inputs, labels (N,), labels (N,)); both members go through the same
    network. ``embedding_network`` gives what is used afterwards. The projection starts as one
    that keeps distances, where it has as many dimensions as there are features: the stage
    begins with what the one before has reached.

    Args:
        trained: student and classifier of the stage before; they are trained on.
        margin: distance beyond which different people are left alone.
        weight: of the contrastive loss beside the two softmax losses.
        size: dimensions of the projection.
        normalised: whether the projections are scaled to unit length first. The paper's are
            not; EdgeID's scores do not see length, and with this the loss does not either.
            Distances then lie in 0..2, and the margin has to.
        regression: weight of the regression of the stage before, which the paper ends here;
            batches then have two more members, the teacher's log-probabilities (N, classes)
            of the first and the second. With few people it keeps the stage from
            unlearning what the teacher knows of others.
    """

    def __init__(
        self,
        trained: TransferObjective,
        margin: float = 1.0,
        weight: float = 1.0,
        size: int = PROJECTION,
        normalised: bool = False,
        regression: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < margin <= (2 if normalised else np.inf) or not weight >= 0:
            raise DataError(
                f"needs margin > 0 (<= 2 if normalised), weight >= 0: {margin}, {weight}"
            )
        self.network = trained.network
        self.classify = trained.classify
        self.project = nn.Linear(trained.classify.in_features, size)
        if size >= trained.classify.in_features:
            nn.init.eye_(self.project.weight)
            nn.init.zeros_(self.project.bias)
        self.margin, self.weight, self.normalised = margin, weight, normalised
        self.unit_features, self.regression = trained.normalised, regression

    def loss(self, batch: Batch, progress: float) -> Tensor:  # noqa: ARG002
        first, second, label1, label2, *teacher = batch
        # one pass over both members: batch statistics, if any, see the same mixture
        features = self.network(torch.cat([first, second])).float()
        with torch.autocast("cpu", enabled=False):
            labels = torch.cat([label1, label2])
            # the mean over 2N members is half of the two softmax losses of the pairs
            x = functional.normalize(features) if self.unit_features else features
            student = functional.log_softmax(self.classify(x), dim=1)
            loss = 2 * functional.nll_loss(student, labels)
            if self.regression:
                loss = loss + self.regression * log_probability_loss(student, torch.cat(teacher))
            y = self.project(features)
            x1, x2 = (functional.normalize(y) if self.normalised else y).chunk(2)
            pairs = contrastive_loss(x1, x2, label1 == label2, self.margin)
            return loss + self.weight * pairs

    def embedding_network(self) -> nn.Module:
        """(N, *shape) -> (N, 256), in evaluation mode, for ``export_torch``."""
        return nn.Sequential(self.network, self.project).eval()

    def shape(self) -> dict[str, Any]:
        return {"classes": self.classify.out_features, "projection": self.project.out_features}


class PairSampler:
    """Pairs of samples, of which ``matching`` are of one identity.

    Identities are drawn evenly, so that one with hundreds of photos does not outweigh the
    others; the members of a matching pair are two different samples.

    Args:
        labels: (N,) identities of the samples.
        matching: share of matching pairs, 0..1.

    Raises:
        DataError: fewer than two identities, or none with two samples where matching pairs
            are wanted.
    """

    def __init__(self, labels: NDArray[np.int64], matching: float = 0.5) -> None:
        if labels.ndim != 1 or not len(labels) or not 0 <= matching <= 1:
            raise DataError(f"labels {labels.shape} must be (N,), matching {matching} in 0..1")
        self.matching = matching
        self._order = np.argsort(labels, kind="stable")
        _, self._starts, self._counts = np.unique(
            labels[self._order], return_index=True, return_counts=True
        )
        self._several = np.flatnonzero(self._counts > 1)
        if len(self._counts) < 2 or (matching > 0 and not len(self._several)):
            raise DataError(
                f"pairs need two identities, and one with two samples; there are "
                f"{len(self._counts)}, with at most {self._counts.max()} samples"
            )

    def draw(
        self, count: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
        """Indices of first and second members, and whether they match: (count,) each."""
        same = rng.random(count) < self.matching
        people = len(self._counts)
        one = rng.integers(people, size=count)
        one[same] = rng.choice(self._several, size=int(same.sum())) if same.any() else 0
        other = np.where(same, one, (one + rng.integers(1, people, size=count)) % people)
        first = rng.integers(self._counts[one])
        # of the same person: any sample but the first one; of another: any
        step = rng.integers(1, np.maximum(self._counts[one], 2))
        second = np.where(
            same, (first + step) % self._counts[one], rng.integers(self._counts[other])
        )
        return self._sample(one, first), self._sample(other, second), same

    def _sample(self, people: NDArray[np.intp], number: NDArray[np.intp]) -> NDArray[np.intp]:
        return np.asarray(self._order[self._starts[people] + number], np.intp)


def transfer_drawing(
    inputs: NDArray[np.float32],
    labels: NDArray[np.int64],
    teacher: NDArray[np.float32],
    batch: int,
) -> Draw:
    """Draws batches for ``TransferObjective``; teacher (N, classes) log-probabilities."""

    def draw(rng: np.random.Generator) -> Batch:
        chosen = rng.integers(len(inputs), size=batch)
        return tuple(torch.from_numpy(part[chosen]) for part in (inputs, labels, teacher))

    return draw


def siamese_drawing(
    inputs: NDArray[np.float32], labels: NDArray[np.int64], pairs: int, matching: float = 0.5
) -> Draw:
    """Draws batches of so many pairs for ``SiameseObjective``."""
    sampler = PairSampler(labels, matching)

    def draw(rng: np.random.Generator) -> Batch:
        first, second, _ = sampler.draw(pairs, rng)
        parts = (inputs[first], inputs[second], labels[first], labels[second])
        return tuple(torch.from_numpy(part) for part in parts)

    return draw


def train_transfer(
    objective: TransferObjective, draw: Draw, out: Path, options: TrainOptions = TRANSFER_OPTIONS
) -> Path:
    """Train the compressed student, with checkpoints at ``out`` from which it resumes.

    ``draw`` gives batches as ``transfer_drawing`` does; one of your own may augment.
    Raises DataError for a checkpoint of another training.
    """
    return train(objective, draw, options, out, "transfer")


def train_siamese(
    objective: SiameseObjective, draw: Draw, out: Path, options: TrainOptions = SIAMESE_OPTIONS
) -> Path:
    """Go on with the compressed student on pairs; as ``train_transfer``."""
    return train(objective, draw, options, out, "siamese")
