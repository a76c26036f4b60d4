"""Small networks as graphs, written layer by layer: what the converter's tests work on."""

from __future__ import annotations

import numpy as np

from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.graph import (
    Add,
    AveragePool,
    Conv,
    Entry,
    Flatten,
    Gemm,
    Graph,
    Layer,
    PRelu,
)

UNITS = (1, 2, 4, 1)  # residual units of the four stages of CNN-20


class _Writer:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.layers: list[Layer] = []
        self.tensors = {}

    def add(self, name: str, values: np.ndarray) -> str:
        self.tensors[name] = encode_float32(values)
        return name

    def weighted(self, shape: tuple[int, ...]) -> tuple[str, str, str]:
        """Name of the next layer with its weight and bias."""
        name = f"layer{1 + sum(isinstance(x, Conv | Gemm) for x in self.layers):02}"
        spread = np.sqrt(2 / np.prod(shape[1:]))
        weight = self.add(f"{name}.weight", self.rng.standard_normal(shape) * spread)
        return name, weight, self.add(f"{name}.bias", self.rng.standard_normal(shape[0]) * 0.1)

    def unit(self, x: str, c_in: int, c_out: int, stride: int = 1) -> str:
        name, weight, bias = self.weighted((c_out, c_in, 3, 3))
        pad = (1, 1, 1, 1)
        self.layers.append(Conv(name, (x,), f"{name}:0", weight, bias, (stride, stride), pad))
        slope = self.add(f"{name}.slope", self.rng.uniform(0, 0.5, c_out))
        self.layers.append(PRelu(f"{name}.act", (f"{name}:0",), f"{name}:1", slope))
        return f"{name}:1"


def residual_graph(
    seed: int,
    channels: tuple[int, ...] = (3, 4, 4, 6),
    units: tuple[int, ...] = UNITS,
    *,
    size: int = 32,
    dim: int = 5,
    average: bool = False,
) -> Graph:
    """CNN-20 (with the default ``units``) on (1, size, size), batch norms folded.

    ``average`` puts an average over the rows before the fully connected layer, as voices have.
    """
    out = _Writer(seed)
    x, c_in, side = "x", 1, size
    for c_out, count in zip(channels, units, strict=True):
        x = out.unit(x, c_in, c_out, stride=2)
        side = (side + 1) // 2
        for _ in range(count):
            y = out.unit(out.unit(x, c_out, c_out), c_out, c_out)
            out.layers.append(Add(f"{y}+", (x, y), f"{y}+"))
            x = f"{y}+"
        c_in = c_out
    rows = side
    if average:
        out.layers.append(AveragePool("pool", (x,), "pooled", (side, 1)))
        x, rows = "pooled", 1
    out.layers.append(Flatten("flat", (x,), "flat"))
    name, weight, bias = out.weighted((dim, c_in * rows * side))
    out.layers.append(Gemm(name, ("flat",), "y", weight, bias))
    graph = Graph((Entry("face", "x", (1, size, size), "y"),), tuple(out.layers), out.tensors)
    graph.validate()
    return graph


def inputs(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth-ish random images, float32 (count, 1, size, size)."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 1, size, size)).astype(np.float32)
