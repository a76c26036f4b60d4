"""Training of two entries that share weights, for the zipper and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from edgeid.converters.graphs.normalisation import NormModule, split_norms
from edgeid.converters.graphs.weight_calibration import (
    Task,
    Track,
    calibrate_weights,
    draw_inputs,
    regression_task,
    untracked,
)
from edgeid.converters.recipe import Context
from edgeid.runtime.graph import Graph

if TYPE_CHECKING:
    from edgeid.converters.zipper.zipper import Zipper


def regression_tasks(graph: Graph, options: Zipper, context: Context) -> tuple[Task, ...]:
    """Both entries regress the embeddings that they give before merging; no labels needed."""
    torch.set_num_threads(context.threads)
    return tuple(
        regression_task(graph, entry, context.inputs(entry), options.batch, options.fraction)
        for entry in options.entries
    )


def tracker(context: Context) -> Track:
    """The context's progress bars."""
    return lambda items, what: context.track(items, what)


def calibrate_further(
    graph: Graph,
    tasks: Sequence[Task],
    options: Zipper,
    epochs: int,
    seed: int = 1,
    track: Track = untracked,
) -> tuple[Graph, dict[str, float | int | str]]:
    """Calibrate a merged graph for so many more epochs; nothing more is merged."""
    split = split_norms(graph, options.entries)
    done, loss = train_shared(split, lambda module: module, tasks, options, (seed,), epochs, track)
    return done, {f"loss/{entry}": v for entry, v in loss.items()}


def train_shared(
    graph: Graph,
    share: Callable[[NormModule], NormModule],
    tasks: Sequence[Task],
    options: Zipper,
    seed: tuple[int, ...],
    epochs: int,
    track: Track,
) -> tuple[Graph, dict[str, float]]:
    """Take statistics, share, calibrate, take statistics again."""
    schedule = replace(options.schedule(), epochs=epochs)
    weight_of = dict(zip(options.entries, options.weights, strict=True))
    tasks = [replace(task, weight=weight_of[task.entry]) for task in tasks]
    inputs = draw_inputs(tasks, schedule.settle, (*seed, 0))
    module = NormModule(graph, options.entries)
    module.measure(inputs)
    module = share(module)  # in training the norms take each batch's statistics
    loss = calibrate_weights(module, tasks, schedule, (*seed, 1), track)
    module.settle(inputs)
    return module.to_graph(), loss
