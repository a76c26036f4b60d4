"""Zipper: merge two networks of one architecture block by block (paper 004, "ZipperNet").

Round l aligns the filters of block l, gives both networks the mean of the two weights, and
calibrates the whole merged network for one epoch with the losses of both tasks summed. Out
comes a sequence of ever more merged models to choose from by budget. Norms, biases and
PReLU slopes stay with each task.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from edgeid.converters.graphs.normalisation import NormModule, split_norms
from edgeid.converters.graphs.weight_calibration import (
    Schedule,
    Task,
    Track,
    calibrate_weights,
    draw_inputs,
    regression_task,
    untracked,
)
from edgeid.converters.recipe import Context, Pass, PassResult
from edgeid.converters.recipe_progress import graph_key
from edgeid.converters.zipper.filter_alignment import Alignment, Distance, align_layer
from edgeid.converters.zipper.model_sequence import MergedModel, ModelSequence
from edgeid.converters.zipper.shared_layers import (
    Pair,
    absorb_average,
    paired_layers,
    share_weights,
)
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.graph import Graph

Blocks = tuple[tuple[int, ...], ...]
# Layers of CNN-20 counted from 1, the fully connected one being the 21st (section IV-A).
CNN20_BLOCKS: Blocks = (
    *((1,), (2, 3), (4,), (5, 6), (7, 8), (9,)),
    *((10, 11), (12, 13), (14, 15), (16, 17), (18, 19), (20, 21)),
)


@dataclass(frozen=True)
class Zipper(Pass):
    """Merge the first blocks of two entries.

    Needs two entries whose layers have the same shapes in the same order; leaves their
    names, inputs and outputs. Afterwards the merged layers share their weights.

    Attributes:
        entries: the filters of the first are permuted towards those of the second.
        blocks: how many blocks to merge; None: all of them.
        grouping: of layers, counted from 1, into blocks; None: paper 004's for a network
            of 21 layers, one block a layer otherwise.
        distance: of filters, see ``filter_alignment``; None: no alignment (for comparison).
        balance: see ``share_weights``; False is paper 004 to the letter.
        epochs: of calibration after each block.
        fraction: of the samples that make up an epoch.
        batch, rate: of calibration.
        settle: batches from which the norms' statistics are taken.
        bfloat16: see ``weight_calibration.Schedule``.
    """

    entries: tuple[str, str] = ("face", "voice")
    blocks: int | None = None
    grouping: Blocks | None = None
    distance: Distance | None = "filter"
    balance: bool = False
    epochs: int = 1
    fraction: float = 0.1
    batch: int = 64
    rate: float = 1e-3
    settle: int = 16
    bfloat16: bool = False

    name: ClassVar[str] = "zipper"

    def requires(self, graph: Graph, context: Context) -> None:
        self._check_options()
        pairs = paired_layers(graph, self.entries)
        count = len(blocks_of(len(pairs), self.grouping))
        if self.blocks is not None and not 0 <= self.blocks <= count:
            raise GraphError(f"{self.blocks} blocks to merge, there are {count}")
        shared = [a.name for a, b in pairs if a.weight == b.weight]
        if shared:
            raise GraphError(f"layer {shared[0]!r} is merged already")
        for entry in self.entries:
            context.inputs(entry)

    def call(self, graph: Graph, context: Context) -> PassResult:
        tasks = regression_tasks(graph, self, context)
        models = list(
            merge_sequence(graph, tasks, self, context.work, context.seed, tracker(context))
        )
        lines = tuple(model.line() for model in models)
        return PassResult(models[-1].graph, lines, models[-1].figures)

    def ensures(self, _before: Graph, after: Graph, _context: Context) -> None:
        pairs = paired_layers(after, self.entries)
        blocks = blocks_of(len(pairs), self.grouping)
        merged = [n for block in blocks[: self.blocks] for n in block]
        for number, (a, b) in enumerate(pairs, 1):
            if (a.weight == b.weight) != (number in merged):
                raise GraphError(f"layer {number} ({a.name!r}, {b.name!r}) is merged wrongly")

    def _check_options(self) -> None:
        if len(set(self.entries)) < 2:
            raise GraphError(f"entries {self.entries}: one network cannot be merged with itself")
        if not 0 < self.rate < math.inf:
            raise DataError(f"rate {self.rate} must be above 0 and finite")
        if self.epochs < 0 or self.settle < 1 or self.batch < 2 or not 0 < self.fraction <= 1:
            raise DataError(
                f"epochs {self.epochs} (0 or more), settle {self.settle} (1 or more), batch "
                f"{self.batch} (2 or more), fraction {self.fraction} (above 0, to 1): out of range"
            )

    def schedule(self) -> Schedule:
        """Of the calibration after a block."""
        return Schedule(self.epochs, self.rate, self.settle, self.bfloat16)


def blocks_of(layers: int, grouping: Blocks | None = None) -> Blocks:
    """How the weighted layers of a network are grouped; GraphError unless each is there once."""
    if grouping is None:
        grouping = CNN20_BLOCKS if layers == 21 else tuple((n,) for n in range(1, layers + 1))
    if [n for block in grouping for n in block] != list(range(1, layers + 1)) or () in grouping:
        raise GraphError(f"grouping {grouping} must hold layers 1..{layers} in order, each once")
    return grouping


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


def merge_sequence(
    graph: Graph,
    tasks: Sequence[Task],
    options: Zipper,
    work: Path,
    seed: int = 1,
    track: Track = untracked,
) -> Iterator[MergedModel]:
    """The models with 0, 1, 2 ... merged blocks, each saved under ``work`` as it is made.

    Models that an earlier run saved are read back, and the run goes on from the last.

    Raises:
        GraphError: the entries are not of one architecture, or embeddings differ in size.
        DataError: ``work`` holds the sequence of other networks or options; the calibration
            diverged, or a task is missing.
    """
    if {task.entry for task in tasks} != set(options.entries):
        raise DataError(f"tasks for {[t.entry for t in tasks]}, needed for {options.entries}")
    blocks = blocks_of(len(paired_layers(graph, options.entries)), options.grouping)
    sequence = ModelSequence(work, _key(graph, options, seed), tasks)
    yield (model := sequence.read(0) or sequence.keep(0, graph, {}))
    for number in range(1, len(blocks[: options.blocks]) + 1):
        found = sequence.read(number)
        if found is None:
            merged, figures = merge_block(
                model.graph, blocks[number - 1], tasks, options, (seed, number), track
            )
            found = sequence.keep(number, merged, figures)
        yield (model := found)


def _key(graph: Graph, options: Zipper, seed: int) -> str:
    # a sequence that ended early can be continued: the number of blocks is left out
    settings = json.dumps(replace(options, blocks=None).to_dict(), sort_keys=True)
    return hashlib.sha256((graph_key(graph, {}, seed) + settings).encode()).hexdigest()


def merge_block(
    graph: Graph,
    block: Sequence[int],
    tasks: Sequence[Task],
    options: Zipper,
    seed: tuple[int, ...],
    track: Track = untracked,
) -> tuple[Graph, dict[str, float | int | str]]:
    """One round: align, share the mean, calibrate. Returns the graph and what happened.

    Args:
        block: the layers to merge, counted from 1; all before them are merged already.
    """
    aligned, alignments = align_block(graph, block, options)
    pairs = block_pairs(aligned, block, options.entries)

    def share(module: NormModule) -> NormModule:
        named = [(a, b, shared_name(n)) for n, (a, b) in zip(block, pairs, strict=True)]
        shared = NormModule(share_weights(module.graph, named, options.balance), options.entries)
        shared.norms.load_state_dict(module.norms.state_dict())
        return shared

    merged, loss = train_shared(aligned, share, tasks, options, seed, options.epochs, track)
    figures: dict[str, float | int | str] = {f"loss/{entry}": v for entry, v in loss.items()}
    figures["distance before"] = sum(one.before for one in alignments)
    figures["distance after"] = sum(one.after for one in alignments)
    return merged, figures


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


def align_block(
    graph: Graph, block: Sequence[int], options: Zipper
) -> tuple[Graph, tuple[Alignment, ...]]:
    """Give every convolution of a block a norm, and bring the first entry's filters into the
    order of the second's; all outputs stay."""
    for pair in block_pairs(graph, block, options.entries):
        if len({graph.tensors[layer.weight].shape for layer in pair}) > 1:
            for entry, layer in zip(options.entries, pair, strict=True):
                graph = absorb_average(graph, entry, layer)
    graph = split_norms(graph, options.entries)
    alignments = []
    for moved, reference in block_pairs(graph, block, options.entries):
        if options.distance is not None:
            graph, alignment = align_layer(graph, moved, reference, options.distance)
            alignments.append(alignment)
    return graph, tuple(alignments)


def shared_name(number: int) -> str:
    """Of the weight that both entries' layers number ``number`` share."""
    return f"shared/{number:02}.weight"


def block_pairs(graph: Graph, block: Sequence[int], entries: tuple[str, str]) -> list[Pair]:
    pairs = paired_layers(graph, entries)
    return [pairs[number - 1] for number in block]


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
    inputs = draw_inputs(tasks, schedule.settle, (*seed, 0))
    module = NormModule(graph, options.entries)
    module.measure(inputs)
    module = share(module)  # in training the norms take each batch's statistics
    loss = calibrate_weights(module, tasks, schedule, (*seed, 1), track)
    module.settle(inputs)
    return module.to_graph(), loss
