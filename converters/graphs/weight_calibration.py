"""Weight calibration: train a merged network end to end, the losses of its tasks summed.

Paper 004, section III-C. A task names an entry, draws batches and scores embeddings: by a
classification loss where there are labels, by regression of the original network's
embeddings where there are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeid.converters.graphs.embedding_loss import embedding_loss
from edgeid.converters.graphs.normalisation import NormModule
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import DataError
from edgeid.runtime.graph import Graph

Batch = tuple[Tensor, ...]
Loss = Callable[[Tensor, Batch], Tensor]
Track = Callable[[Iterable[int], str], Iterable[int]]


def untracked(items: Iterable[int], _what: str) -> Iterable[int]:
    """No progress bar."""
    return items


@dataclass(frozen=True)
class Task:
    """What an entry is trained on.

    Attributes:
        entry: of the graph.
        draw: makes a batch; its first tensor is the network's input (N, *shape), N >= 2.
        loss: (embedding (N, d), batch) -> scalar. The parameters of a module are trained too.
        steps: batches of one epoch.
        weight: of the loss in the sum of all tasks'.
    """

    entry: str
    draw: Callable[[np.random.Generator], Batch]
    loss: Loss
    steps: int
    weight: float = 1.0


@dataclass(frozen=True)
class Schedule:
    """How weights are calibrated.

    Attributes:
        epochs: passes over the longest task; shorter tasks start again.
        rate: peak learning rate of Adam, one cycle.
        settle: batches from which the statistics of the norms are taken.
        bfloat16: compute in bfloat16 where torch holds that to be safe; faster, less memory.
    """

    epochs: int = 1
    rate: float = 1e-3
    settle: int = 16
    bfloat16: bool = False


def regression_loss(embedding: Tensor, batch: Batch) -> Tensor:
    """``embedding_loss`` to the target embeddings (batch[1], unit length)."""
    return embedding_loss(F.normalize(embedding), batch[1])


def regression_task(
    graph: Graph, entry: str, samples: FloatArray, batch: int = 64, fraction: float = 1.0
) -> Task:
    """Regress the embeddings that ``graph`` gives for ``samples`` now; no labels needed.

    Args:
        samples: float32 (N, *shape), N >= 2.
        batch: samples a step.
        fraction: of the samples that make up an epoch, drawn anew each time.

    Raises:
        DataError: there are too few samples, or batch or fraction is out of range.
    """
    if len(samples) < 2 or batch < 2 or not 0 < fraction <= 1:
        raise DataError(
            f"{entry}: {len(samples)} samples, batches of {batch} (2 or more are needed), "
            f"fraction {fraction} (0 to 1)"
        )
    engine = make_engine(graph, "auto", 1)
    targets = np.concatenate([engine.run(entry, part) for part in _batches(samples, 64)])
    aims = F.normalize(torch.from_numpy(targets))
    count = min(batch, len(samples))

    def draw(rng: np.random.Generator) -> Batch:
        index = rng.choice(len(samples), count, replace=False)
        return torch.from_numpy(samples[index]), aims[torch.from_numpy(index)]

    return Task(entry, draw, regression_loss, max(1, round(len(samples) * fraction / count)))


def _batches(samples: FloatArray, size: int) -> list[FloatArray]:
    return [samples[i : i + size] for i in range(0, len(samples), size)]


def draw_inputs(tasks: Sequence[Task], count: int, seed: Sequence[int]) -> dict[str, list[Tensor]]:
    """``count`` input batches of every task, for statistics."""
    rng = np.random.default_rng(seed)
    return {t.entry: [t.draw(rng)[0] for _ in range(count)] for t in tasks}


def calibrate_weights(
    module: NormModule,
    tasks: Sequence[Task],
    schedule: Schedule,
    seed: Sequence[int],
    track: Track = untracked,
) -> dict[str, float]:
    """Train ``module`` (and the tasks' own parameters) on the sum of the tasks' losses.

    Returns the mean loss of each entry over the last quarter of the steps; empty where
    there is nothing to train. Equal seeds give equal results on one machine.

    Raises:
        DataError: the loss became infinite or NaN.
    """
    steps = schedule.epochs * max(task.steps for task in tasks)
    if steps == 0:
        return {}
    heads = [task.loss for task in tasks if isinstance(task.loss, nn.Module)]
    parameters = [p for part in (module, *heads) for p in part.parameters()]
    optimiser = torch.optim.Adam(parameters, schedule.rate)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, schedule.rate, total_steps=steps + 1)
    history: dict[str, list[float]] = {task.entry: [] for task in tasks}
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on CPUs
    module.train()
    for step in track(range(steps), "calibration"):
        optimiser.zero_grad()
        for task in tasks:  # one after the other: the sum's gradient, half the memory
            rng = np.random.default_rng((*seed, step, tasks.index(task)))
            batch = task.draw(rng)
            with torch.autocast("cpu", torch.bfloat16, enabled=schedule.bfloat16):
                embedding = module(batch[0], task.entry)
            loss = task.loss(embedding.float(), batch)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise DataError(
                    f"the loss of {task.entry!r} is {value} at step {step + 1} of {steps}: "
                    f"lower the rate {schedule.rate}"
                )
            (task.weight * loss).backward()  # type: ignore[no-untyped-call]
            history[task.entry].append(value)
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        cycle.step()
    module.eval()
    last = max(1, steps // 4)
    return {entry: float(np.mean(values[-last:])) for entry, values in history.items()}
