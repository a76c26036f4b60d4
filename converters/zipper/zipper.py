"""Zipper: merge two networks of one architecture block by block (paper 004, "ZipperNet").

Round l aligns the filters of block l, gives both networks one weight for the two (the paper's
mean, or what ``output_sharing`` finds), and calibrates the whole merged network for one epoch
with the losses of both tasks summed. Out
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
from typing import ClassVar, Literal

from edgeid.converters.graphs.normalisation import NormModule, split_norms
from edgeid.converters.graphs.weight_calibration import (
    Schedule,
    Task,
    Track,
    draw_inputs,
    untracked,
)
from edgeid.converters.recipe import Context, Pass, PassResult
from edgeid.converters.recipe_progress import graph_key
from edgeid.converters.zipper.filter_alignment import Alignment, Distance, align_layer
from edgeid.converters.zipper.model_sequence import MergedModel, ModelSequence
from edgeid.converters.zipper.output_sharing import match_outputs, with_shared_outputs
from edgeid.converters.zipper.shared_layers import (
    absorb_average,
    block_pairs,
    paired_layers,
    share_weights,
    shared_name,
)
from edgeid.converters.zipper.shared_training import (
    calibrate_further,
    regression_tasks,
    tracker,
    train_shared,
)
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.graph import Graph

MATCHED = 6  # times as many batches as norms settle on, from which outputs are matched
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
        merging: "outputs" shares what answers most like both layers, see ``output_sharing``;
            "mean" is paper 004 to the letter, the mean of aligned filters.
        distance: of filters, for the mean, see ``filter_alignment``; None: no alignment.
        balance: of the mean, see ``share_weights``; the paper has none.
        weights: how much the outputs and the losses of each entry count.
        epochs: of calibration after each block.
        finish: further epochs after the last block, and ``finish_rate`` their rate.
        fraction: of the samples that make up an epoch.
        batch, rate: of calibration.
        settle: batches from which the norms' statistics are taken.
        bfloat16: see ``weight_calibration.Schedule``.
    """

    entries: tuple[str, str] = ("face", "voice")
    blocks: int | None = None
    grouping: Blocks | None = None
    merging: Literal["outputs", "mean"] = "outputs"
    distance: Distance | None = "filter"
    balance: bool = False
    weights: tuple[float, float] = (1.0, 1.0)
    epochs: int = 1
    finish: int = 0
    finish_rate: float = 1e-3
    fraction: float = 0.1
    batch: int = 64
    rate: float = 3e-4
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
        if self.merging not in ("outputs", "mean"):
            raise DataError(f"merging is 'outputs' or 'mean', not {self.merging!r}")
        if not all(0 < weight < math.inf for weight in self.weights):
            raise DataError(f"weights {self.weights} must be above 0 and finite")
        for rate in (self.rate, self.finish_rate):
            if not 0 < rate < math.inf:
                raise DataError(f"rate {rate} must be above 0 and finite")
        if min(self.epochs, self.finish) < 0:
            raise DataError(f"epochs {self.epochs} and {self.finish} must be 0 or more")
        if self.settle < 1 or self.batch < 2 or not 0 < self.fraction <= 1:
            raise DataError(
                f"settle {self.settle} (1 or more), batch {self.batch} (2 or more), fraction "
                f"{self.fraction} (above 0, to 1): out of range"
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
    blocks = blocks[: options.blocks]
    sequence = ModelSequence(work, _key(graph, options, seed), tasks)
    yield (model := sequence.read(0) or sequence.keep(0, graph, {}))
    for number in range(1, len(blocks) + 1):
        found = sequence.read(number)
        if found is None:
            merged, figures = merge_block(
                model.graph, blocks[number - 1], tasks, options, (seed, number), track
            )
            if number == len(blocks) and options.finish:
                longer = replace(options, rate=options.finish_rate)
                merged, loss = calibrate_further(merged, tasks, longer, options.finish, seed, track)
                figures |= loss
            found = sequence.keep(number, merged, figures)
        yield (model := found)


def _key(graph: Graph, options: Zipper, seed: int) -> str:
    # a sequence that ended early can be continued, unless it was finished
    kept = options if options.finish else replace(options, blocks=None)
    settings = json.dumps(kept.to_dict(), sort_keys=True)
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
    if options.merging == "mean":
        aligned, alignments = align_block(graph, block, options)
        share = _mean_of(aligned, block, options)
    else:
        split, _ = align_block(graph, block, replace(options, distance=None))
        inputs = draw_inputs(tasks, MATCHED * options.settle, (*seed, 2))
        aligned, shared, alignments = match_outputs(
            split, block, options.entries, inputs, options.weights, fast=options.bfloat16
        )

        def share(module: NormModule) -> NormModule:
            return with_shared_outputs(module, shared, options.entries)

    merged, loss = train_shared(aligned, share, tasks, options, seed, options.epochs, track)
    figures: dict[str, float | int | str] = {f"loss/{entry}": v for entry, v in loss.items()}
    figures["distance before"] = sum(one.before for one in alignments)
    figures["distance after"] = sum(one.after for one in alignments)
    return merged, figures


def _mean_of(
    graph: Graph, block: Sequence[int], options: Zipper
) -> Callable[[NormModule], NormModule]:
    pairs = block_pairs(graph, block, options.entries)
    named = [(a, b, shared_name(n)) for n, (a, b) in zip(block, pairs, strict=True)]

    def share(module: NormModule) -> NormModule:
        shared = NormModule(share_weights(module.graph, named, options.balance), options.entries)
        shared.norms.load_state_dict(module.norms.state_dict())
        return shared

    return share


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
