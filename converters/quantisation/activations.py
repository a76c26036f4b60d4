"""Eight-bit activations: how each is stored by an integer engine, chosen on sample inputs.

An activation has a few values far out. Covering them makes all steps larger, cutting them off
("clipping") makes those few wrong. The range of least squared error balances the two (Banner
et al. 2019, "Post training 4-bit quantization of convolutional networks for rapid-deployment");
here it is found on a histogram, each end on its own, as PReLUs write negative values too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edgeid.converters.graphs.embedding_similarity import similarity
from edgeid.converters.graphs.torch_graph import GraphModule
from edgeid.converters.quantisation.table_scales import choose_table_scales, looked_up
from edgeid.converters.recipe import Context, Figures, Pass, PassResult
from edgeid.runtime.activation_scale import LEVELS, ActivationScale
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.graph import Conv, Gemm, Graph
from edgeid.runtime.native.engine import integer_engine
from edgeid.runtime.reference import ReferenceEngine

BATCH = 8  # samples at once: all activations of a batch are in memory
BINS = 1024  # of a histogram, on each side of zero
TABLE_SAMPLES = 16  # of which look-up tables are taken, each with many entries
HELD_OUT = 10  # one sample in ten is measured on, the others calibrate
MIN_SAMPLES = 3  # one to calibrate, two to tell apart

Method = Literal["mse", "percentile", "max"]
METHODS = ("mse", "percentile", "max")
Counts = NDArray[np.float64]
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ActivationScales(Pass):
    """Choose the scale and zero point of every activation that a weighted layer reads, and what
    a step of the tables stands for where the native engine computes a layer by look-up.

    Rules: convolutions and fully connected layers are weighted; what they read is often the
    network's input, and then gets a scale too. A scale holds for a whole activation. Layers
    and weights stay as they are, scales of other entries too. Passes that change weights
    come before.

    Attributes:
        entries: whose activations; None takes every entry that has samples.
        method: "mse" takes the range of least squared error, "percentile" cuts off the
            outermost values at both ends, "max" covers all that was seen.
        percentile: the share in % of an activation's values that are above the lower end,
            and of those below the upper, 50..100; for that method.
        samples: how many of an entry's samples to use, at most; 3 or more. A tenth of them, at
            least two, is measured on and does not calibrate.
    """

    entries: tuple[str, ...] | None = None
    method: Method = "mse"
    percentile: float = 99.99
    samples: int = 256

    name: ClassVar[str] = "activation_scales"
    keeps_scales: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise DataError(f"method {self.method!r} is none of {', '.join(METHODS)}")
        if not 50 <= self.percentile <= 100:
            raise DataError(f"percentile {self.percentile!r} must be a number, 50..100")
        if type(self.samples) is not int or self.samples < MIN_SAMPLES:
            raise DataError(f"samples {self.samples!r} must be a whole number from {MIN_SAMPLES}")

    def requires(self, graph: Graph, context: Context) -> None:
        """Raise GraphError or DataError unless every entry has samples and a weighted layer."""
        if not self._entries(graph, context):
            raise DataError("activations are calibrated on samples, and there are none")
        for entry in self._entries(graph, context):
            count = len(context.inputs(entry))
            if count < MIN_SAMPLES:
                raise DataError(f"entry {entry!r} has {count} samples, {MIN_SAMPLES} are needed")
            if not weighted_inputs(graph, entry):
                raise GraphError(f"entry {entry!r} has no convolution or fully connected layer")

    def call(self, graph: Graph, context: Context) -> PassResult:
        """Find the extremes, count, choose, measure: three runs over the samples."""
        torch.set_num_threads(context.threads)
        calibration: dict[str, FloatArray] = {}
        held_out: dict[str, FloatArray] = {}
        for entry in self._entries(graph, context):
            x = _chosen(context, entry, self.samples)
            count = max(2, len(x) // HELD_OUT)
            calibration[entry], held_out[entry] = x[:-count], x[-count:]
        histograms: dict[str, Histogram] = {}
        for name, values in _activations(graph, calibration, context, "ranges"):
            histograms.setdefault(name, Histogram()).widen(values)
        for name, values in _activations(graph, calibration, context, "histograms"):
            histograms[name].count(values)
        chosen = {
            name: ActivationScale.covering(*seen.range(self.method, self.percentile))
            for name, seen in histograms.items()
        }
        scaled = replace(graph, scales=dict(graph.scales) | chosen)
        tables = dict(graph.table_scales)
        for entry, x in calibration.items():
            layers = looked_up(scaled, entry)
            some = {entry: x[:TABLE_SAMPLES]}
            if layers:
                seen = _activations(graph, some, context, "tables")
                tables |= choose_table_scales(scaled, layers, ((n, v.numpy()) for n, v in seen))
        scaled = replace(scaled, table_scales=tables)
        return _measured(scaled, chosen, held_out, context)

    def ensures(self, before: Graph, after: Graph, context: Context) -> None:
        """Raise GraphError unless all asked for have a scale, and nothing else has changed."""
        if replace(after, scales=before.scales, table_scales=before.table_scales) != before:
            raise GraphError("layers, entries or weights have changed, only scales may")
        for entry in self._entries(after, context):
            missing = [name for name in weighted_inputs(after, entry) if name not in after.scales]
            if missing:
                raise GraphError(f"activation {missing[0]!r} of entry {entry!r} has no scale")

    def _entries(self, graph: Graph, context: Context) -> tuple[str, ...]:
        names = context.samples if self.entries is None else self.entries
        return tuple(graph.entry(name).name for name in names)


def weighted_inputs(graph: Graph, entry: str) -> tuple[str, ...]:
    """The activations that an entry's convolutions and fully connected layers read, in order."""
    read = [x.inputs[0] for x in graph.layers_of(entry) if isinstance(x, Conv | Gemm)]
    return tuple(dict.fromkeys(read))


@dataclass
class Histogram:
    """How often an activation had which value, apart for negative and positive values.

    Zeros are only part of the total: whatever the range, they are exact.

    Attributes:
        low, high: the extremes, and 0 where that is beyond; to be known before counting.
        below, above: (BINS,) values in equal bins from 0 to ``-low``, and from 0 to ``high``.
        total: of values counted, zeros too.
    """

    low: float = 0.0
    high: float = 0.0
    below: Counts = field(default_factory=lambda: np.zeros(BINS))
    above: Counts = field(default_factory=lambda: np.zeros(BINS))
    total: int = 0

    def widen(self, x: torch.Tensor) -> None:
        """Take values into the extremes; raises GraphError on NaN and infinity."""
        low, high = (float(v) for v in torch.aminmax(x))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise GraphError("an activation is NaN or infinite on the samples")
        self.low, self.high = min(self.low, low), max(self.high, high)

    def count(self, x: torch.Tensor) -> None:
        """Count values, all within the extremes."""
        self.total += x.numel()
        self.below += _binned(-x[x < 0], -self.low)
        self.above += _binned(x[x > 0], self.high)

    def range(self, method: Method, percentile: float) -> tuple[float, float]:
        """(low, high) to be covered by 256 levels."""
        if method == "max":
            return self.low, self.high
        sides = (self.below, -self.low), (self.above, self.high)
        if method == "percentile":
            beyond = self.total * (100 - percentile) / 100
            below, above = (_cut(counts, limit, beyond) for counts, limit in sides)
            return -below, above
        return _least_error(*sides)


def _binned(x: torch.Tensor, limit: float) -> Counts:
    """Positive values counted in equal bins up to ``limit``."""
    if not len(x):
        return np.zeros(BINS)
    return torch.histc(x, BINS, min=0, max=limit).numpy().astype(np.float64)


def _cut(counts: Counts, limit: float, beyond: float) -> float:
    """The lowest edge of a bin with at most ``beyond`` values above it."""
    above = np.append(np.cumsum(counts[::-1])[::-1], 0)
    return float(np.argmax(above <= beyond)) * limit / BINS


def _least_error(below: tuple[Counts, float], above: tuple[Counts, float]) -> tuple[float, float]:
    """The range, out of all pairs of edges, whose squared error is least.

    The error of what is inside is that of a uniform quantiser, step^2 / 12 a value.
    """
    (edges_below, cut_below, inside_below) = _side(*below)
    (edges_above, cut_above, inside_above) = _side(*above)
    steps = np.add.outer(edges_below, edges_above) / (LEVELS - 1)
    error = np.add.outer(cut_below, cut_above)
    error += steps**2 / 12 * np.add.outer(inside_below, inside_above)
    i, j = np.unravel_index(np.argmin(error), error.shape)
    return -float(edges_below[i]), float(edges_above[j])


def _side(counts: Counts, limit: float) -> tuple[Counts, Counts, Counts]:
    """At each edge (BINS + 1,): where it is, the squared error of clipping there, and how
    many values are inside."""
    edges = np.linspace(0, limit, BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    beyond = [np.append(np.cumsum((counts * centres**power)[::-1])[::-1], 0) for power in (0, 1, 2)]
    error = beyond[2] - 2 * edges * beyond[1] + edges**2 * beyond[0]
    return edges, np.maximum(error, 0), counts.sum() - beyond[0]


def _chosen(context: Context, entry: str, most: int) -> FloatArray:
    """At most so many samples, drawn by the context's seed, in random order."""
    x = context.inputs(entry)
    order = np.random.default_rng(context.seed).permutation(len(x))
    return x[order[:most]]


@torch.no_grad()
def _activations(
    graph: Graph, inputs: Mapping[str, FloatArray], context: Context, what: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """What weighted layers read, by name, for one batch after the other of every entry."""
    for entry, x in inputs.items():
        module = GraphModule(graph, (entry,))
        names = weighted_inputs(graph, entry)
        for start in context.track(range(0, len(x), BATCH), f"{entry} {what}"):
            values = module.activations(torch.from_numpy(x[start : start + BATCH]), entry)
            for name in names:
                yield name, values[name]


def _measured(
    graph: Graph,
    chosen: Mapping[str, ActivationScale],
    held_out: Mapping[str, FloatArray],
    context: Context,
) -> PassResult:
    """The result, with what eight bits cost on the samples that did not calibrate."""
    ratios = _noise_ratios(graph, chosen, held_out, context)
    figures: Figures = {"activations": len(chosen)}
    lines = [f"{len(chosen)} activations in 8 bits"]
    before, after = (
        {entry: engine.run(entry, x) for entry, x in held_out.items()}
        for engine in (
            ReferenceEngine(graph, context.threads),
            integer_engine(graph, context.threads),
        )
    )
    for entry, cosine in similarity(before, after).items():
        own = {name: ratios[name] for name in weighted_inputs(graph, entry)}
        worst = min(own, key=lambda name: own[name])
        error = centred_error(before[entry], after[entry])
        figures |= {f"cosine/{entry}": cosine, f"relative_error/{entry}": round(error, 4)}
        lines.append(
            f"{entry}: cosine {cosine:.5f}, relative error {error:.1%} on "
            f"{len(held_out[entry])} held-out samples; signal to noise from "
            f"{own[worst]:.1f} dB (in {worst!r})"
        )
    figures |= {f"sqnr/{name}": round(ratio, 2) for name, ratio in ratios.items()}
    return PassResult(graph, tuple(lines), figures)


def _noise_ratios(
    graph: Graph,
    scales: Mapping[str, ActivationScale],
    inputs: Mapping[str, FloatArray],
    context: Context,
) -> dict[str, float]:
    """Signal to quantisation noise of each activation by itself, in dB."""
    signal, noise = dict.fromkeys(scales, 0.0), dict.fromkeys(scales, 0.0)
    for name, x in _activations(graph, inputs, context, "noise"):
        values = x.numpy()
        rounded = scales[name].dequantise(scales[name].quantise(values))
        signal[name] += float(np.square(values, dtype=np.float64).sum())
        noise[name] += float(np.square(rounded - values, dtype=np.float64).sum())
    return {
        name: 10 * math.log10(signal[name] / noise[name]) if noise[name] else math.inf
        for name in scales
    }


def centred_error(before: FloatArray, after: FloatArray) -> float:
    """|after - before| / |before - its mean| of unit embeddings (N, d).

    Embeddings of faces are all somewhat alike, which flatters a cosine; what tells people
    apart is what differs from the mean.
    """
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (before, after))
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (a, b))
    spread = float(np.linalg.norm(a - a.mean(axis=0)))
    return float(np.linalg.norm(b - a)) / spread if spread else 0.0
