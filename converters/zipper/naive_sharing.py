"""The naive way to merge two networks, to compare the zipper with (paper 004, Figure 1b)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from edgeid.converters.graphs.normalisation import NormModule
from edgeid.converters.graphs.weight_calibration import Task, Track, untracked
from edgeid.converters.recipe import Context, Pass, PassResult
from edgeid.converters.zipper.shared_layers import (
    Pair,
    block_pairs,
    norm_after,
    paired_layers,
    share_weight,
    shared_name,
)
from edgeid.converters.zipper.shared_training import regression_tasks, tracker, train_shared
from edgeid.converters.zipper.zipper import Zipper, align_block, blocks_of
from edgeid.runtime.errors import GraphError
from edgeid.runtime.graph import Graph, PRelu


@dataclass(frozen=True)
class NaiveSharing(Pass):
    """The baseline of paper 004 (Figure 1b): take one network's weights for both tasks and
    fine-tune; nothing is aligned or averaged.

    Attributes:
        zipper: entries, blocks to share and calibration, as for the zipper it is compared
            with; the epochs of all its rounds are spent at once.
        start: the entry whose weights, norms and slopes the shared layers of both begin with.
    """

    zipper: Zipper = field(default_factory=Zipper)
    start: str = "face"

    name: ClassVar[str] = "naive"

    def requires(self, graph: Graph, context: Context) -> None:
        self.zipper.requires(graph, context)
        if self.start not in self.zipper.entries:
            raise GraphError(f"start {self.start!r} is none of the entries {self.zipper.entries}")

    def call(self, graph: Graph, context: Context) -> PassResult:
        tasks = regression_tasks(graph, self.zipper, context)
        merged, loss = share_naively(graph, tasks, self, context.seed, tracker(context))
        figures: dict[str, float | int | str] = {f"loss/{k}": v for k, v in loss.items()}
        return PassResult(merged, (f"every layer begins as that of {self.start!r}",), figures)

    def ensures(self, before: Graph, after: Graph, context: Context) -> None:
        self.zipper.ensures(before, after, context)


def share_naively(
    graph: Graph,
    tasks: Sequence[Task],
    options: NaiveSharing,
    seed: int = 1,
    track: Track = untracked,
) -> tuple[Graph, dict[str, float]]:
    """The naive baseline for the same blocks and as many epochs as the zipper's rounds have."""
    zipper = options.zipper
    count = len(paired_layers(graph, zipper.entries))
    blocks = blocks_of(count, zipper.grouping)[: zipper.blocks]
    if not blocks:
        return graph, {}
    whole = [n for block in blocks for n in block]
    split, _ = align_block(graph, whole, replace(zipper, distance=None))
    pairs = block_pairs(split, whole, zipper.entries)
    if options.start != zipper.entries[0]:
        pairs = [(b, a) for a, b in pairs]  # the layer to begin with first
    split = _with_slopes(split, pairs)

    def share(module: NormModule) -> NormModule:
        shared = module.graph
        for number, pair in zip(whole, pairs, strict=True):
            weight = shared.tensors[pair[0].weight].decode()
            shared = share_weight(shared, pair, shared_name(number), weight)
        made = NormModule(shared, zipper.entries)
        made.norms.load_state_dict(module.norms.state_dict())
        for source, other in pairs:
            mine, theirs = (made.norm(norm_after(split, one).name) for one in (source, other))
            theirs.load_state_dict(mine.state_dict())
        return made

    return train_shared(split, share, tasks, zipper, (seed, 0), zipper.epochs * len(blocks), track)


def _with_slopes(graph: Graph, pairs: Sequence[Pair]) -> Graph:
    """The PReLU slopes behind the second layer of each pair become those behind the first."""
    slopes = {x.inputs[0]: x.slope for x in graph.layers if isinstance(x, PRelu)}
    tensors = dict(graph.tensors)
    for pair in pairs:
        source, other = (slopes.get(norm_after(graph, layer).output) for layer in pair)
        if source is not None and other is not None:
            tensors[other] = graph.tensors[source]
    return replace(graph, tensors=tensors)
