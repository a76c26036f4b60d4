"""What a student is taught: an entry's samples, blends of them, and the teacher's answers.

Calibration samples are few. A blend of two of them is a new input, and the teacher says what it
looks like: a student that regresses the answers learns the teacher's function between the
samples (Beyer et al., "Knowledge distillation: A good teacher is patient and consistent",
CVPR 2022). That needs no labels, and nothing but that inputs may be averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgeid.converters.graphs.torch_graph import GraphModule, to_torch
from edgeid.converters.recipe import Context
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.errors import DataError
from edgeid.runtime.graph import Graph

BATCH = 64
SHARES = 0.3, 0.7  # of the first of two blended samples
POOLED = 2  # sizes of maps whose averages are units beside the embedding

Answer = Callable[[GraphModule, Tensor], Tensor]
Draw = Callable[[np.random.Generator], tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class Lessons:
    """Samples and blends; view 0 is the samples themselves.

    Attributes:
        samples: (N, *shape).
        partners, shares: (views, N); in view v sample i is ``shares[v, i]`` of sample i and
            the rest of sample ``partners[v, i]``.
        answers: (views, N, d) of the teacher.
    """

    samples: FloatArray
    partners: NDArray[np.intp]
    shares: NDArray[np.float32]
    answers: FloatArray

    def draw(
        self, batch: int, rng: np.random.Generator
    ) -> tuple[Tensor, NDArray[np.intp], NDArray[np.intp]]:
        """Inputs (batch, *shape), the view and the sample of each; half are of view 0."""
        index = rng.integers(len(self.samples), size=batch)
        view = rng.integers(len(self.shares), size=batch)
        view[rng.random(batch) < 0.5] = 0
        return torch.from_numpy(self.inputs(view, index)), view, index

    def inputs(self, view: NDArray[np.intp], index: NDArray[np.intp]) -> FloatArray:
        """(n, *shape) of samples ``index`` in the views ``view``, (n,) each."""
        return _blended(self.samples, index, self.partners[view, index], self.shares[view, index])


@dataclass(frozen=True, eq=False)
class Standardised:
    """Answers with mean 0 and spread 1 over the samples, so that all units count alike.

    Attributes:
        values: (views, N, d).
        mean, spread: (d,); the spread of a unit that never changes is 1.
    """

    values: FloatArray
    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, answers: FloatArray) -> Standardised:
        """From (views, N, d)."""
        mean, spread = answers[0].mean(axis=0), answers[0].std(axis=0)
        spread = np.where(spread > 1e-6, spread, 1.0).astype(np.float32)
        values = np.asarray((answers - mean) / spread, np.float32)
        return cls(values, torch.from_numpy(mean), torch.from_numpy(spread))

    def drawing(self, lessons: Lessons, batch: int) -> Draw:
        """Draws batches (inputs, units) for ``MimicObjective``."""

        def draw(rng: np.random.Generator) -> tuple[Tensor, ...]:
            inputs, view, index = lessons.draw(batch, rng)
            return inputs, torch.from_numpy(self.values[view, index])

        return draw


def take_lessons(graph: Graph, entry: str, context: Context, views: int, answer: Answer) -> Lessons:
    """Ask the entry's network about its samples and ``views`` - 1 blends of each.

    Raises:
        DataError: there are no samples of the entry, or fewer than two; no view is asked for.
    """
    samples = context.inputs(entry)
    count = len(samples)
    if count < 2 or views < 1:
        raise DataError(f"{entry}: {count} samples, {views} views: needs two samples, one view")
    rng = np.random.default_rng((context.seed, 7))
    own = np.arange(count)
    partners = np.stack([own, *(_others(count, rng) for _ in range(views - 1))])
    shares = rng.uniform(*SHARES, (views, count)).astype(np.float32)
    shares[0] = 1.0
    module = to_torch(graph, entry).eval()
    answers = []
    for view in context.track(range(views), f"{entry}: teacher"):
        parts = []
        for start in range(0, count, BATCH):
            index = own[start : start + BATCH]
            x = _blended(samples, index, partners[view, index], shares[view, index])
            with torch.no_grad():
                parts.append(answer(module, torch.from_numpy(x)).float().numpy())
        answers.append(np.concatenate(parts))
    return Lessons(samples, partners, shares, np.stack(answers))


def _others(count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """(count,) for each sample another one."""
    return np.asarray((np.arange(count) + rng.integers(1, count, count)) % count, np.intp)


def _blended(
    samples: FloatArray,
    index: NDArray[np.intp],
    partners: NDArray[np.intp],
    shares: NDArray[np.float32],
) -> FloatArray:
    part = shares.reshape(-1, *[1] * (samples.ndim - 1))
    return np.asarray(part * samples[index] + (1 - part) * samples[partners], np.float32)


def unit_embedding(module: GraphModule, x: Tensor) -> Tensor:
    """(N, d) of unit length: what two faces or voices are compared by."""
    return functional.normalize(module(x).flatten(1))


def hidden_units(module: GraphModule, x: Tensor) -> Tensor:
    """(N, d + h): the embedding of unit length, then the units of the top hidden layers.

    Those are the last maps of the two smallest sizes, averaged over positions.
    """
    values = module.activations(x)
    maps: dict[tuple[int, ...], Tensor] = {}
    for value in values.values():
        if value.ndim == 4 and value.shape[2] * value.shape[3] > 1:
            maps[tuple(value.shape[2:])] = value
    smallest = sorted(maps, key=lambda size: size[0] * size[1])[:POOLED]
    output = values[module.graph.entry(module.entries[0]).output]
    pooled = [maps[size].mean(dim=(2, 3)) for size in smallest if maps[size] is not x]
    return torch.cat([functional.normalize(output.flatten(1)), *pooled], dim=1)
