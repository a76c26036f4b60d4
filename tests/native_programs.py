"""What the tests of the native engine share: programs of one layer, a network of all kinds of
steps, and comparing bits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgeid.runtime.activation_scale import ActivationScale
from edgeid.runtime.codebook import make_codebook
from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.graph import (
    Add,
    AveragePool,
    Clip,
    Concat,
    Conv,
    Entry,
    Flatten,
    Gemm,
    Graph,
    L2Normalize,
    MaxPool,
    Mul,
    PRelu,
    Relu,
    Reshape,
)
from edgeid.runtime.native import program as p
from edgeid.runtime.native.records import make_records
from edgeid.runtime.packing import pack_bits


def lookup(rng, cin, cout, kernel=(1, 1), count=16, length=8, codewords=None, multipliers=None):
    """Random look-up weights; ``codewords`` and ``multipliers`` replace the random ones."""
    spaces = -(-cin // length)
    shape = (spaces, count, length)
    values = rng.integers(-127, 128, shape) if codewords is None else codewords
    values = np.broadcast_to(values, shape).astype(np.int8)
    beyond = spaces * length - cin
    if beyond:
        values[-1, :, length - beyond :] = 0
    indices = rng.integers(0, count, (spaces, *kernel, cout))
    steps = rng.integers(1, 400, spaces) if multipliers is None else multipliers
    return p.LookupWeights(
        values,
        pack_bits(indices, count.bit_length() - 1),
        np.broadcast_to(steps, spaces).astype(np.int16),
    )


def out_size(size, window):
    """(height, width) after the window."""
    top, left, bottom, right = window.pad
    rows = (size[1] + top + bottom - window.kernel[0]) // window.stride[0] + 1
    columns = (size[2] + left + right - window.kernel[1]) // window.stride[1] + 1
    return rows, columns


@dataclass(frozen=True)
class Network:
    """One convolution between what makes everything that it writes visible.

    Its input is eight-bit, its output is stored in both forms; a depth-wise step reads the
    eight-bit form, and the end joins both. ``residual`` are weights of a second convolution
    whose output is added.
    """

    size: p.Size
    scale: ActivationScale
    window: p.Window
    weights: object
    epilogue: p.Epilogue
    out_scale: ActivationScale
    groups: int = 1
    residual: object = None

    def program(self) -> p.Program:
        channels = len(self.epilogue.gain)
        size = (channels, *out_size(self.size, self.window))
        floats = isinstance(self.residual, p.FloatWeights)
        epilogue = self.epilogue
        source = p.Value("x", self.size, self.scale, real=floats)
        steps = [p.Pack("x", (), source)]
        if self.residual is not None:
            epilogue = replace(epilogue, residual="other")
            other = p.Epilogue(np.full(channels, 0.25, np.float32), np.ones(channels, np.float32))
            steps.append(
                p.Convolution(
                    *("other", ("x",), p.Value("other", size)), self.window, 1, self.residual, other
                )
            )
        one = np.ones(channels, np.float32)
        steps += [
            p.Convolution(
                *("layer", ("x",), p.Value("y", size, self.out_scale)),
                *(self.window, self.groups, self.weights, epilogue),
            ),
            p.Convolution(
                *("coded", ("y",), p.Value("q", size)),
                *(p.Window((1, 1), (1, 1), (0, 0, 0, 0)), channels),
                p.DenseWeights(np.ones((channels, 1, 1, 1), np.int8)),
                p.Epilogue(one, 0 * one),
            ),
            p.Concat("both", ("y", "q"), p.Value("both", (2 * channels, *size[1:]))),
        ]
        values = {step.output.name: step.output for step in steps}
        end = steps[-1].output
        return p.Program("face", self.size, tuple(steps), values, end.name, end.size)


def compiled(native, program, isa):
    """The program for the C kernels."""
    records = make_records(program)
    return native.Program(
        records.records,
        records.slots,
        records.blob,
        int(np.prod(program.input_shape)),
        int(np.prod(program.output_shape)),
        records.result,
        isa,
    )


def run_compiled(native, program, x, isa, pool):
    """What the kernels of a level answer."""
    out = np.full((len(x), *program.output_shape), np.nan, np.float32)
    native.run(pool, compiled(native, program, isa), np.ascontiguousarray(x), out)
    return out


def drawn_input(rng, kind, size, scale):
    """Batches that reach all of the eight bits, or their ends only, or lie between two steps."""
    q = rng.integers(0, 256, size).astype(np.float32)
    if kind == "low":
        q[:] = 0
    elif kind == "high":
        q[:] = 255
    elif kind == "ends":
        q = np.where(q > 127, np.float32(255), np.float32(0))
    elif kind == "halves":
        q += 0.5
    elif kind == "beyond":
        q = (q - 128) * np.float32(1e30)
    return ((q - scale.zero) * np.float32(scale.scale)).astype(np.float32)


def same_bits(got, expected):
    """Equal to the bit; zeros of two signs differ."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype == np.float32
    different = got.view(np.uint32) != expected.view(np.uint32)
    where = tuple(int(i[0]) for i in np.nonzero(different)) if different.any() else ()
    assert not where, (
        f"{different.sum()} differ, the first at {where}: {got[where]}, {expected[where]}"
    )


def fixed(cin, cout, size, window, weights, zero=0, form="high", groups=1, batch=1):
    rng = np.random.default_rng(0)
    scale = ActivationScale(1.0, zero)
    epilogue = p.Epilogue(np.ones(cout, np.float32), np.zeros(cout, np.float32))
    network = Network(
        *((cin, *size), scale, window, weights, epilogue, ActivationScale(1.0, 3), groups)
    )
    return network.program(), drawn_input(rng, form, (batch, cin, *size), scale)


def encoded(rng, *shape):
    spread = np.sqrt(2 / np.prod(shape[1:]))
    return encode_float32((rng.standard_normal(shape) * spread).astype(np.float32))


def coded(rng, *shape, count=16, length=8):
    spaces = -(-shape[1] // length)
    spread = np.sqrt(2 / np.prod(shape[1:]))
    codewords = (rng.standard_normal((spaces, count, length)) * spread).astype(np.float32)
    indices = rng.integers(0, count, (spaces, *(shape[2:] or (1, 1)), shape[0]))
    return make_codebook(codewords, indices, shape)


def small_cnn(seed=0):
    """Every kind of step in 21 layers; look-up, dense, depth-wise and float convolutions."""
    rng = np.random.default_rng(seed)
    tensors = {
        "w1": encoded(rng, 16, 3, 3, 3),
        "s1": encode_float32(rng.uniform(0, 0.5, 16).astype(np.float32)),
        "w2": coded(rng, 32, 16, 3, 3),
        "w3": coded(rng, 32, 32, 3, 3, count=32, length=8),
        "s3": encode_float32(rng.uniform(-0.5, 0.5, 32).astype(np.float32)),
        "deep": encoded(rng, 32, 1, 3, 3),
        "grouped": encoded(rng, 12, 8, 3, 3),
        "w5": coded(rng, 72, 44, 1, 1),
        "w6": encoded(rng, 24, 72, 1, 1),
        "fc": coded(rng, 80, 24 * 6),
        "b": encode_float32(rng.standard_normal(32).astype(np.float32)),
    }
    same = (1, 1, 1, 1)
    layers = (
        Conv("c1", ("x",), "v1", "w1", None, (2, 2), same),
        PRelu("p1", ("v1",), "v1p", "s1"),
        Conv("c2", ("v1p",), "v2", "w2", "b", (1, 1), same),
        Relu("r2", ("v2",), "v2r"),
        Conv("c3", ("v2r",), "v3", "w3", None, (1, 1), same),
        PRelu("p3", ("v3",), "v3p", "s3"),
        Add("add", ("v2r", "v3p"), "v4"),
        MaxPool("largest", ("v4",), "v5", (3, 3), (2, 2), same),
        Conv("deep", ("v5",), "v6", "deep", None, (1, 1), same, 32),
        Clip("clip", ("v6",), "v6c", 0, 6),
        Conv("grouped", ("v6c",), "v7", "grouped", None, (1, 1), same, 4),
        Concat("join", ("v5", "v7"), "v8"),
        Conv("c5", ("v8",), "v9", "w5"),
        Mul("square", ("v9", "v9"), "v10"),
        Add("double", ("v10", "v10"), "v10d"),
        AveragePool("mean", ("v10d",), "v11", (2, 1), (2, 1)),
        Conv("c6", ("v11",), "v12", "w6"),
        Reshape("turn", ("v12",), "v13", (6, 2, -1)),
        Flatten("flat", ("v13",), "v14"),
        Gemm("fc", ("v14",), "v15", "fc"),
        L2Normalize("unit", ("v15",), "y"),
    )
    scales = {
        name: ActivationScale(scale, zero)
        for name, scale, zero in (
            ("x", 0.03, 120),
            ("v1p", 0.02, 40),
            ("v2r", 0.03, 0),
            ("v5", 0.04, 30),
            ("v8", 0.04, 60),
            ("v11", 0.1, 0),
            ("v14", 0.3, 128),
        )
    }
    graph = Graph((Entry("face", "x", (3, 17, 11), "y"),), layers, tensors, scales)
    graph.validate()
    return graph


def images(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, 17, 11)).astype(np.float32)
