"""Sliding windows as TFLite has them: padding by rule (SAME, VALID) or by layers before.

SAME pads as little as gives ceil(size / stride) positions, the odd one at the end. Padding
that follows no rule is made explicit. Padding that no window reaches is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAME, VALID = 0, 1  # Padding in TFLite's schema


@dataclass(frozen=True)
class Window:
    """A window that slides along one axis.

    Attributes:
        size: of the input.
        kernel: of the window.
        stride: between two positions.
        before: padding in front of the input.
        positions: how many there are.
    """

    size: int
    kernel: int
    stride: int
    before: int
    positions: int

    @property
    def after(self) -> int:
        """Padding behind the input that the last window reaches."""
        reach = (self.positions - 1) * self.stride + self.kernel
        return max(0, reach - self.size - self.before)

    @property
    def is_valid(self) -> bool:
        """Whether there is no padding."""
        return self.before == self.after == 0

    @property
    def is_same(self) -> bool:
        """Whether the padding is what TFLite's rule SAME gives."""
        positions = -(-self.size // self.stride)
        total = max(0, (positions - 1) * self.stride + self.kernel - self.size)
        least = total // 2
        return (self.positions, self.before, self.after) == (positions, least, total - least)

    def inside(self) -> NDArray[np.int64]:
        """(positions,) how many values of the input each window sees."""
        start = np.arange(self.positions) * self.stride - self.before
        end = np.minimum(start + self.kernel, self.size)
        return np.asarray(end - np.maximum(start, 0))

    def repeated(self) -> NDArray[np.int32]:
        """(before + size + after,) indices that repeat the first and the last value.

        A window that reaches beyond the edge sees the value at the edge too, so repeating
        it changes no maximum.
        """
        index = np.arange(-self.before, self.size + self.after)
        return np.clip(index, 0, self.size - 1).astype(np.int32)


def padding_rule(windows: Iterable[Window]) -> int | None:
    """``VALID`` or ``SAME`` where that is the padding of all windows, else None."""
    found = tuple(windows)
    if all(window.is_valid for window in found):
        return VALID
    return SAME if all(window.is_same for window in found) else None
