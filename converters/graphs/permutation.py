"""Channel permutations that leave the function of a network unchanged.

The order of a layer's output channels is arbitrary as long as every layer that reads them
agrees. A channel group holds all tensor axes that must permute together: an addition joins
the groups of its two inputs, so everything along a chain of shortcuts is one group; PReLU
slopes, biases and depth-wise kernels follow their channels; flattening turns a channel into
a block of features. Used to bring similar sub-vectors into one sub-space (Martinez et al.
2021, "Permute, Quantize, and Fine-tune", section 3.2) and to align filters (paper 004).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.encoding import Dense, Tensor, encode_float32
from edgeid.runtime.errors import GraphError
from edgeid.runtime.graph import (
    Affine,
    Concat,
    Conv,
    Flatten,
    Gemm,
    Graph,
    Layer,
    PRelu,
    Reshape,
    Shape,
)


@dataclass(frozen=True)
class ChannelAxis:
    """Channel c of a group lies at ``start + c * block`` .. ``+ block`` of a tensor's axis.

    Axis 0 of a weight writes the channels, axis 1 reads them.
    """

    tensor: str
    axis: int
    start: int
    block: int

    def positions(self, order: NDArray[np.intp]) -> NDArray[np.intp]:
        """Positions on the axis of the channels ``order``, one block after the other."""
        return (self.start + order[:, None] * self.block + np.arange(self.block)).reshape(-1)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that permute together, and everywhere they occur.

    Attributes:
        channels: how many.
        fixed: they may not be permuted: an entry's input or output, or a place where the
            order of channels carries meaning (grouped convolutions, some reshapes).
        axes: of the tensors that hold them, without repetition.
        activations: names of the activations that carry them.
    """

    channels: int
    fixed: bool
    axes: tuple[ChannelAxis, ...]
    activations: tuple[str, ...]

    def readers(self) -> tuple[ChannelAxis, ...]:
        """The weights that read the channels."""
        return tuple(axis for axis in self.axes if axis.axis == 1)


def channel_groups(graph: Graph) -> tuple[ChannelGroup, ...]:
    """All channel groups of a valid graph, in order of first use; entries need not be apart."""
    analysis = _Analysis({name: tensor.shape for name, tensor in graph.tensors.items()})
    for entry in graph.entries:
        analysis.shapes.update(graph.infer_shapes(entry.name))
        if entry.input not in analysis.activations:
            analysis.activations[entry.input] = (_Segment(analysis.group(entry.shape[0], True), 1),)
    for layer in graph.layers:
        analysis.visit(layer)
    for entry in graph.entries:
        analysis.fix(analysis.activations[entry.output])
    return analysis.groups()


def group_reading(groups: Sequence[ChannelGroup], tensor: str) -> tuple[ChannelGroup, ...]:
    """The groups that a weight reads on its input axis, in the order of the axis."""
    found = [(axis.start, g) for g in groups for axis in g.readers() if axis.tensor == tensor]
    return tuple(group for _, group in sorted(found, key=lambda item: item[0]))


def permute(graph: Graph, group: ChannelGroup, order: Sequence[int] | NDArray[np.intp]) -> Graph:
    """The graph with new channel i being the old channel ``order[i]``; same outputs.

    Raises:
        GraphError: the group is fixed, or ``order`` is no permutation of its channels.
    """
    index = np.asarray(order, dtype=np.intp)
    if not np.array_equal(np.sort(index), np.arange(group.channels)):
        raise GraphError(f"no permutation of {group.channels} channels: {index.tolist()!r:.120}")
    if group.fixed:
        raise GraphError(f"the channels of {group.activations[:3]} may not be permuted")
    tensors = dict(graph.tensors)
    identity = np.arange(group.channels)
    for axis in group.axes:
        take = np.arange(tensors[axis.tensor].shape[axis.axis])
        take[axis.positions(identity)] = axis.positions(index)
        tensors[axis.tensor] = _taken(tensors[axis.tensor], take, axis.axis)
    return replace(graph, tensors=tensors)


def _taken(tensor: Tensor, index: NDArray[np.intp], axis: int) -> Tensor:
    if isinstance(tensor, Dense):
        return Dense(np.ascontiguousarray(np.take(tensor.array, index, axis)))
    return encode_float32(np.take(tensor.decode(), index, axis))


@dataclass(frozen=True)
class _Segment:
    """A stretch of an axis: all channels of a group, ``block`` features each."""

    group: int
    block: int


_Segments = tuple[_Segment, ...]


@dataclass
class _Analysis:
    """Union-find over channel groups while walking the layers."""

    weights: dict[str, Shape]
    shapes: dict[str, Shape] = field(default_factory=dict)
    activations: dict[str, _Segments] = field(default_factory=dict)
    tensors: dict[tuple[str, int], _Segments] = field(default_factory=dict)
    _parents: list[int] = field(default_factory=list)
    _sizes: list[int] = field(default_factory=list)
    _fixed: list[bool] = field(default_factory=list)

    def group(self, channels: int, fixed: bool = False) -> int:
        self._parents.append(len(self._parents))
        self._sizes.append(channels)
        self._fixed.append(fixed)
        return len(self._parents) - 1

    def fix(self, segments: _Segments) -> None:
        for segment in segments:
            self._fixed[self._root(segment.group)] = True

    def visit(self, layer: Layer) -> None:
        inputs = [self.activations[name] for name in layer.inputs]
        rule = _RULES.get(type(layer))
        output = rule(self, layer, inputs) if rule else self._joined(inputs)
        self.activations[layer.output] = output

    def groups(self) -> tuple[ChannelGroup, ...]:
        axes: dict[int, list[ChannelAxis]] = {}
        names: dict[int, list[str]] = {}
        for activation, segments in self.activations.items():
            for segment in segments:
                names.setdefault(self._root(segment.group), []).append(activation)
        for (tensor, axis), segments in self.tensors.items():
            start = 0
            for segment in segments:
                root = self._root(segment.group)
                axes.setdefault(root, []).append(ChannelAxis(tensor, axis, start, segment.block))
                start += self._sizes[root] * segment.block
        return tuple(
            ChannelGroup(
                self._sizes[root], self._fixed[root], tuple(axes.get(root, ())), tuple(found)
            )
            for root, found in names.items()
        )

    def _root(self, group: int) -> int:
        while self._parents[group] != group:
            group = self._parents[group]
        return group

    def _joined(self, inputs: list[_Segments]) -> _Segments:
        """Element-wise layers: all inputs carry the same channels."""
        for other in inputs[1:]:
            self._tie(inputs[0], other)
        return inputs[0]

    def _tie(self, a: _Segments, b: _Segments) -> None:
        if self._layout(a) != self._layout(b):
            self.fix(a + b)  # cut in different places: no order of one is one of the other
            return
        for left, right in zip(a, b, strict=True):
            root, joined = self._root(left.group), self._root(right.group)
            self._parents[joined] = root
            self._fixed[root] = self._fixed[root] or self._fixed[joined]

    def _layout(self, segments: _Segments) -> list[tuple[int, int]]:
        return [(self._sizes[self._root(s.group)], s.block) for s in segments]

    def _hold(self, tensor: str | None, axis: int, segments: _Segments) -> None:
        """The tensor's axis carries the segments; a tensor that two layers share ties them."""
        if tensor is None:
            return
        known = self.tensors.setdefault((tensor, axis), segments)
        if known is not segments:
            self._tie(known, segments)

    def weighted(self, layer: Layer, inputs: list[_Segments]) -> _Segments:
        assert isinstance(layer, Conv | Gemm)
        outputs = self.weights[layer.weight][0]
        groups = layer.groups if isinstance(layer, Conv) else 1
        if groups == 1:
            output: _Segments = (_Segment(self.group(outputs), 1),)
            self._hold(layer.weight, 1, inputs[0])
        elif groups == self.shapes[layer.inputs[0]][0]:  # depth-wise
            fan = outputs // groups
            output = tuple(_Segment(s.group, s.block * fan) for s in inputs[0])
        else:
            self.fix(inputs[0])
            output = (_Segment(self.group(outputs, True), 1),)
        self._hold(layer.weight, 0, output)
        self._hold(layer.bias, 0, output)
        return output

    def scaled(self, layer: Layer, inputs: list[_Segments]) -> _Segments:
        for name in layer.tensor_names():
            self._hold(name, 0, inputs[0])
        return inputs[0]

    def joined_end_to_end(self, _layer: Layer, inputs: list[_Segments]) -> _Segments:
        return tuple(segment for segments in inputs for segment in segments)

    def reshaped(self, layer: Layer, inputs: list[_Segments]) -> _Segments:
        """Values keep their row-major order: a channel is a run of them, whole rows if it may."""
        before, after = self.shapes[layer.inputs[0]], self.shapes[layer.output]
        run, row = math.prod(before[1:]), math.prod(after[1:])
        if all(s.block * run % row == 0 for s in inputs[0]):
            return tuple(_Segment(s.group, s.block * run // row) for s in inputs[0])
        self.fix(inputs[0])
        return (_Segment(self.group(after[0], True), 1),)


_Rule = Callable[[_Analysis, Any, list[_Segments]], _Segments]
_RULES: dict[type[Layer], _Rule] = {
    Conv: _Analysis.weighted,
    Gemm: _Analysis.weighted,
    PRelu: _Analysis.scaled,
    Affine: _Analysis.scaled,
    Concat: _Analysis.joined_end_to_end,
    Flatten: _Analysis.reshaped,
    Reshape: _Analysis.reshaped,
}
