"""The operators of a graph: one frozen dataclass each, with its rule for shapes.

Vocabulary and meaning follow ONNX (https://onnx.ai/onnx/operators).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from edgeid.runtime.layer import MAX_ELEMENTS, Layer, Shape

__all__ = [
    "MAX_ELEMENTS",
    "OPERATORS",
    "Add",
    "Affine",
    "AveragePool",
    "Clip",
    "Concat",
    "Conv",
    "Flatten",
    "Gemm",
    "GlobalAveragePool",
    "L2Normalize",
    "Layer",
    "MaxPool",
    "Mul",
    "PRelu",
    "Relu",
    "Reshape",
    "Shape",
]


@dataclass(frozen=True)
class Conv(Layer):
    """Convolution. weight (out, in / groups, height, width), bias (out,), pad (top, left,
    bottom, right); no dilation."""

    weight: str
    bias: str | None = None
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1

    op: ClassVar[str] = "Conv"

    def tensor_names(self) -> tuple[str, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def output_shape(self, inputs: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        size = self.feature_map(inputs)
        weight = tensors[self.weight]
        if len(weight) != 4:
            raise self.error(f"tensor {self.weight!r} has shape {weight}, needs four axes")
        if self.groups < 1 or size[0] % self.groups or weight[0] % self.groups:
            raise self.error(
                f"groups {self.groups} does not divide {size[0]} input and {weight[0]} "
                "output channels"
            )
        self.expect(self.weight, tensors, (weight[0], size[0] // self.groups, *weight[2:]))
        if self.bias is not None:
            self.expect(self.bias, tensors, (weight[0],))
        return (weight[0], *self.window(size, (weight[2], weight[3]), self.stride, self.pad))


@dataclass(frozen=True)
class Gemm(Layer):
    """Fully connected: y = x W^T + b. weight (out, in), bias (out,)."""

    weight: str
    bias: str | None = None

    op: ClassVar[str] = "Gemm"

    def tensor_names(self) -> tuple[str, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def output_shape(self, inputs: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        shape = self.only(inputs)
        weight = tensors[self.weight]
        if len(shape) != 1:
            raise self.error(f"needs an input (features,), got shape {shape}: flatten it first")
        if len(weight) != 2:
            raise self.error(f"tensor {self.weight!r} has shape {weight}, needs two axes")
        self.expect(self.weight, tensors, (weight[0], shape[0]))
        if self.bias is not None:
            self.expect(self.bias, tensors, (weight[0],))
        return (weight[0],)


@dataclass(frozen=True)
class PRelu(Layer):
    """x where x > 0, else slope * x; slope (channels,)."""

    slope: str

    op: ClassVar[str] = "PRelu"

    def tensor_names(self) -> tuple[str, ...]:
        return (self.slope,)

    def output_shape(self, inputs: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        shape = self.only(inputs)
        self.expect(self.slope, tensors, (shape[0],))
        return shape


@dataclass(frozen=True)
class Affine(Layer):
    """x * weight + bias for each channel; a batch norm that no layer before it can take."""

    weight: str
    bias: str

    op: ClassVar[str] = "Affine"

    def tensor_names(self) -> tuple[str, ...]:
        return (self.weight, self.bias)

    def output_shape(self, inputs: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        shape = self.only(inputs)
        self.expect(self.weight, tensors, (shape[0],))
        self.expect(self.bias, tensors, (shape[0],))
        return shape


@dataclass(frozen=True)
class Relu(Layer):
    """max(x, 0)."""

    op: ClassVar[str] = "Relu"

    def output_shape(self, inputs: Sequence[Shape], _tensors: Mapping[str, Shape]) -> Shape:
        return self.only(inputs)


@dataclass(frozen=True)
class Clip(Layer):
    """min(max(x, low), high); Relu6 is low 0, high 6."""

    low: float
    high: float

    op: ClassVar[str] = "Clip"

    def output_shape(self, inputs: Sequence[Shape], _tensors: Mapping[str, Shape]) -> Shape:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise self.error(f"low {self.low} and high {self.high} must be finite and in order")
        return self.only(inputs)


@dataclass(frozen=True)
class _Elementwise(Layer):
    def output_shape(self, inputs: Sequence[Shape], _tensors: Mapping[str, Shape]) -> Shape:
        if len(inputs) != 2 or inputs[0] != inputs[1]:
            raise self.error(f"takes two inputs of one shape, got {list(inputs)}")
        return inputs[0]


@dataclass(frozen=True)
class Add(_Elementwise):
    """Sum of two activations of one shape."""

    op: ClassVar[str] = "Add"


@dataclass(frozen=True)
class Mul(_Elementwise):
    """Product of two activations of one shape, value by value."""

    op: ClassVar[str] = "Mul"


@dataclass(frozen=True)
class _Pool(Layer):
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)

    def output_shape(self, inputs: Sequence[Shape], _tensors: Mapping[str, Shape]) -> Shape:
        size = self.feature_map(inputs)
        return (size[0], *self.window(size, self.kernel, self.stride, self.pad))


@dataclass(frozen=True)
class MaxPool(_Pool):
    """Largest value in each window; padding never wins."""

    op: ClassVar[str] = "MaxPool"


@dataclass(frozen=True)
class AveragePool(_Pool):
    """Mean of each window over the values inside the image (padding is not counted)."""

    op: ClassVar[str] = "AveragePool"


@dataclass(frozen=True)
class GlobalAveragePool(Layer):
    """Mean of every channel: (channels, height, width) -> (channels, 1, 1)."""

    op: ClassVar[str] = "GlobalAveragePool"

    def output_shape(self, inputs: Sequence[Shape], _tensors: Mapping[str, Shape]) -> Shape:
        return (self.feature_map(inputs)[0], 1, 1)


@dataclass(frozen=True)
class Flatten(Layer):
    """All axes but the batch become one, in row-major order."""

    op: ClassVar[str] = "Flatten"

    def output_shape(self, inputs: Sequence[Shape], _tensors: Mapping[str, Shape]) -> Shape:
        return (math.prod(self.only(inputs)),)


@dataclass(frozen=True)
class Reshape(Layer):
    """Same values, other axes. ``shape`` leaves the batch axis out, which stays first; one
    axis may be -1 and takes what is left."""

    shape: tuple[int, ...]

    op: ClassVar[str] = "Reshape"

    def output_shape(self, inputs: Sequence[Shape], _tensors: Mapping[str, Shape]) -> Shape:
        count = math.prod(self.only(inputs))
        known = math.prod(n for n in self.shape if n != -1)
        wild = self.shape.count(-1)
        if not self.shape or min(self.shape) < -1 or known < 1 or wild > 1 or count % known:
            raise self.error(f"cannot give {self.only(inputs)} the shape {self.shape}")
        shape = tuple(count // known if n == -1 else n for n in self.shape)
        if math.prod(shape) != count:
            raise self.error(f"cannot give {self.only(inputs)} the shape {self.shape}")
        return shape


@dataclass(frozen=True)
class Concat(Layer):
    """Inputs one after the other along the channels; ``axis`` is 1, counted with the batch."""

    axis: int = 1

    op: ClassVar[str] = "Concat"

    def output_shape(self, inputs: Sequence[Shape], _tensors: Mapping[str, Shape]) -> Shape:
        if self.axis != 1:
            raise self.error(f"joins channels (axis 1) only, not axis {self.axis}")
        if len(inputs) < 2 or any(shape[1:] != inputs[0][1:] for shape in inputs):
            raise self.error(f"needs inputs that differ in channels only, got {list(inputs)}")
        return (sum(shape[0] for shape in inputs), *inputs[0][1:])


@dataclass(frozen=True)
class L2Normalize(Layer):
    """x / max(|x|, eps), the length taken over axis 1 (the channels)."""

    eps: float = 1e-12

    op: ClassVar[str] = "L2Normalize"

    def output_shape(self, inputs: Sequence[Shape], _tensors: Mapping[str, Shape]) -> Shape:
        if not 0 < self.eps < 1:
            raise self.error(f"eps {self.eps} must lie between 0 and 1")
        return self.only(inputs)


_ALL: tuple[type[Layer], ...] = (
    *(Add, Affine, AveragePool, Clip, Concat, Conv, Flatten, Gemm, GlobalAveragePool),
    *(L2Normalize, MaxPool, Mul, PRelu, Relu, Reshape),
)
OPERATORS: dict[str, type[Layer]] = {layer.op: layer for layer in _ALL}
