"""What every operator of a graph has, and the rule for sliding windows.

Shapes leave the batch axis out: a feature map is (channels, height, width), a vector is
(features,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from edgeid.runtime.errors import GraphError

Shape = tuple[int, ...]

MAX_KERNEL = 1024  # height or width of a pooling window
MAX_ELEMENTS = 1 << 26  # of one activation, one padded input or one unfolded input, per image


@dataclass(frozen=True)
class Layer:
    """What every operator has: a unique name, the activations it reads, the one it writes."""

    name: str
    inputs: tuple[str, ...]
    output: str

    op: ClassVar[str] = ""

    def tensor_names(self) -> tuple[str, ...]:
        """Names of the weights the layer reads, in a fixed order."""
        return ()

    def output_shape(self, inputs: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        """Shape of the output without the batch axis; raises GraphError naming the layer."""
        raise NotImplementedError

    def error(self, problem: str) -> GraphError:
        """A GraphError that says which layer has the problem."""
        return GraphError(f"layer {self.name!r} ({self.op}): {problem}")

    def only(self, inputs: Sequence[Shape]) -> Shape:
        """The shape of the one input."""
        if len(inputs) != 1:
            raise self.error(f"takes one input, has {len(inputs)}")
        return inputs[0]

    def feature_map(self, inputs: Sequence[Shape]) -> tuple[int, int, int]:
        """(channels, height, width) of the one input."""
        shape = self.only(inputs)
        if len(shape) != 3:
            raise self.error(f"needs an input (channels, height, width), got shape {shape}")
        return shape[0], shape[1], shape[2]

    def expect(self, tensor: str, tensors: Mapping[str, Shape], shape: Shape) -> None:
        """Raise unless the tensor has the shape."""
        if tensors[tensor] != shape:
            raise self.error(f"tensor {tensor!r} has shape {tensors[tensor]}, needs {shape}")

    def window(
        self,
        size: tuple[int, int, int],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        pad: tuple[int, int, int, int],
    ) -> tuple[int, int]:
        """(height, width) after sliding a window, rounded down as ONNX does by default."""
        top, left, bottom, right = pad
        if min(kernel) < 1 or max(kernel) > MAX_KERNEL:
            raise self.error(f"kernel {kernel} is outside 1..{MAX_KERNEL}")
        if min(stride) < 1 or max(stride) > MAX_KERNEL:
            raise self.error(f"stride {stride} is outside 1..{MAX_KERNEL}")
        if min(pad) < 0 or max(top, bottom) >= kernel[0] or max(left, right) >= kernel[1]:
            raise self.error(f"pad {pad} must be at least 0 and less than the kernel {kernel}")
        height, width = size[1] + top + bottom, size[2] + left + right
        if height < kernel[0] or width < kernel[1]:
            raise self.error(f"kernel {kernel} is larger than the padded input ({height}, {width})")
        rows = (height - kernel[0]) // stride[0] + 1
        columns = (width - kernel[1]) // stride[1] + 1
        self._bounded(size[0] * height * width)
        self._bounded(size[0] * kernel[0] * kernel[1] * rows * columns)
        return rows, columns

    def _bounded(self, elements: int) -> None:
        if elements > MAX_ELEMENTS:
            raise self.error(
                f"needs {elements} values for one image, more than the limit {MAX_ELEMENTS}"
            )
