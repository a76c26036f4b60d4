"""A program in the form that the C kernels read: records of numbers, and one blob of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.activation_scale import ActivationScale
from edgeid.runtime.native import program as p

FIELDS = (
    *("kind", "input", "second", "real", "coded"),
    *("cin", "hin", "win", "cout", "hout", "wout"),
    *("kh", "kw", "sy", "sx", "top", "left"),
    *("groups", "zero", "out_zero"),
    *("count", "length", "spaces"),
    *("codewords", "multipliers", "indices", "weights", "gain", "bias", "slope1", "slope2"),
    *("constants", "channel", "level"),
)
"""Of a record, in the order of ``csrc/program.h``."""

KINDS = (
    *("pack", "lookup", "dense", "depthwise", "float", "sum", "product", "largest", "mean"),
    *("join", "reshape", "normalise", "quantise"),
)

ALIGNMENT = 64
Numbers = dict[str, int]


@dataclass(frozen=True, eq=False)
class Records:
    """What ``_native.Program`` takes.

    Attributes:
        records: (steps, fields) int64.
        slots: (slots, 2) int64: byte offset and size of an activation, for one image.
        blob: weights of all steps.
        result: the slot of the output.
        names: of the step behind each record.
        kinds: of each record.
    """

    records: NDArray[np.int64]
    slots: NDArray[np.int64]
    blob: NDArray[np.uint8]
    result: int
    names: tuple[str, ...]
    kinds: tuple[str, ...]


def make_records(program: p.Program, levels: Mapping[str, int] | None = None) -> Records:
    """The records of a program; activations share memory where their lives do not overlap.

    Args:
        levels: by step, the number of the instruction set that computes it; others are
            computed by that of the program.
    """
    writer = _Writer(program, levels or {})
    for step in program.steps:
        writer.add(step)
    kinds = tuple(row["kind"] for row in writer.rows)
    return Records(
        records=np.array([[row[f] for f in FIELDS] for row in writer.rows], np.int64),
        slots=_placed(writer),
        blob=writer.blob(),
        result=writer.slots[program.output, "real"],
        names=tuple(writer.names),
        kinds=tuple(KINDS[kind] for kind in kinds),
    )


class _Writer:
    def __init__(self, program: p.Program, levels: Mapping[str, int]) -> None:
        self.program = program
        self.levels = levels
        self.rows: list[Numbers] = []
        self.names: list[str] = []
        self.slots: dict[tuple[str, str], int] = {}
        self.bytes: list[int] = []
        self.parts: list[NDArray[np.uint8]] = []
        self.size = 0

    def add(self, step: p.Step) -> None:
        if isinstance(step, p.Concat):
            first = 0
            for name in step.inputs:
                self._row(step, "join", [name], channel=first)
                first += self.program.values[name].size[0]
        elif isinstance(step, p.Convolution):
            self._convolution(step)
        else:
            self._row(step, *self._plain(step))
        value = step.output
        if value.scale is not None and not isinstance(step, p.Pack | p.Convolution):
            self._quantise(step.name, value)

    def _plain(self, step: p.Step) -> tuple[str, list[str]]:
        names = list(step.inputs)
        if isinstance(step, p.Elementwise):
            return ("product" if step.product else "sum"), names
        if isinstance(step, p.Pool):
            return ("largest" if step.largest else "mean"), names
        kinds = {p.Pack: "pack", p.Reshape: "reshape", p.Normalise: "normalise"}
        return kinds[type(step)], names

    def _row(self, step: p.Step, kind: str, inputs: list[str], **more: int) -> Numbers:
        value = step.output
        size = self.program.values[inputs[0]].size if inputs else value.size
        keeps_real = value.real or not isinstance(step, p.Pack | p.Convolution)
        row = dict.fromkeys(FIELDS, -1) | {
            "kind": KINDS.index(kind),
            "input": self._slot(inputs[0], "real") if inputs else -1,
            "second": self._slot(inputs[1], "real") if len(inputs) > 1 else -1,
            "real": self._slot(value.name, "real") if keeps_real else -1,
            "coded": -1,
        }
        if value.scale is not None and isinstance(step, p.Pack | p.Convolution):
            row["coded"] = self._slot(value.name, "coded")
        row |= dict(
            zip(("cin", "hin", "win", "cout", "hout", "wout"), size + value.size, strict=True)
        )
        row |= {"kh": 1, "kw": 1, "sy": 1, "sx": 1, "top": 0, "left": 0, "groups": 1, "zero": 0}
        row |= {"count": 0, "length": 0, "spaces": 0, "channel": 0}
        row["level"] = self.levels.get(step.name, -1)
        row["out_zero"] = value.scale.zero if value.scale else 0
        if isinstance(step, p.Convolution | p.Pool):
            row |= _window(step.window)
        epilogue = step.epilogue if isinstance(step, p.Convolution | p.Elementwise) else None
        if epilogue is not None:
            row |= self._epilogue(epilogue)
        eps = step.eps if isinstance(step, p.Normalise) else 0.0
        row["constants"] = self._constants(epilogue, value.scale, eps)
        row |= more
        self.rows.append(row)
        self.names.append(step.name)
        return row

    def _convolution(self, step: p.Convolution) -> None:
        name, weights = step.inputs[0], step.weights
        more: Numbers = {"groups": step.groups}
        if isinstance(weights, p.LookupWeights):
            kind = "lookup"
            more |= dict(zip(("spaces", "count", "length"), weights.codewords.shape, strict=True))
            more |= {
                "codewords": self._stored(weights.codewords),
                "multipliers": self._stored(weights.multipliers),
                "indices": self._stored(weights.indices),
            }
        else:
            kind = "float" if isinstance(weights, p.FloatWeights) else "dense"
            kind = "depthwise" if kind == "dense" and step.groups > 1 else kind
            more["weights"] = self._stored(weights.values)
        residual = step.epilogue.residual
        if residual is not None:
            more["second"] = self._slot(residual, "real")
        scale = self.program.values[name].scale
        if kind != "float" and scale is not None:
            more |= {"zero": scale.zero, "input": self._slot(name, "coded")}
        else:
            more["real"] = self._slot(step.output.name, "real")
            more["coded"] = -1
        self._row(step, kind, [name], **more)
        if kind == "float" and step.output.scale is not None:
            self._quantise(step.name, step.output)

    def _quantise(self, name: str, value: p.Value) -> None:
        step = p.Reshape(name, (value.name,), value)
        coded = self._slot(value.name, "coded")
        self._row(step, "quantise", [value.name], coded=coded, real=-1)

    def _epilogue(self, epilogue: p.Epilogue) -> Numbers:
        return {
            "gain": self._stored(epilogue.gain),
            "bias": self._stored(epilogue.shift),
            "slope1": self._slope(epilogue.first),
            "slope2": self._slope(epilogue.second),
        }

    def _slope(self, activation: p.Activation) -> int:
        return -1 if activation.slope is None else self._stored(activation.slope)

    def _constants(
        self, epilogue: p.Epilogue | None, scale: ActivationScale | None, eps: float
    ) -> int:
        limits = [-math.inf, math.inf] * 2
        if epilogue is not None:
            first, second = epilogue.first, epilogue.second
            limits = [first.low, first.high, second.low, second.high]
        inverse = np.float32(1) / np.float32(scale.scale) if scale else np.float32(0)
        return self._stored(np.array([*limits, inverse, eps], np.float32))

    def _stored(self, array: NDArray[np.generic]) -> int:
        offset = self.size
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.parts.append(data)
        self.size += -(-data.size // 8) * 8
        return offset

    def blob(self) -> NDArray[np.uint8]:
        blob = np.zeros(max(self.size, 8), np.uint8)
        offset = 0
        for data in self.parts:
            blob[offset : offset + data.size] = data
            offset += -(-data.size // 8) * 8
        return blob

    def _slot(self, name: str, form: str) -> int:
        key = name, form
        if key not in self.slots:
            channels, height, width = self.program.values[name].size
            values = -(-channels // p.BLOCK) * p.BLOCK * height * width
            size = values * (4 if form == "real" else 1)
            self.slots[key] = len(self.bytes)
            self.bytes.append(-(-size // ALIGNMENT) * ALIGNMENT)
        return self.slots[key]


def _window(window: p.Window) -> Numbers:
    names = ("kh", "kw", "sy", "sx", "top", "left")
    return dict(zip(names, (*window.kernel, *window.stride, *window.pad[:2]), strict=True))


def _placed(writer: _Writer) -> NDArray[np.int64]:
    """Offsets: the first gap that is free during the whole life of an activation."""
    count = len(writer.bytes)
    first, last = [len(writer.rows)] * count, [-1] * count
    for number, row in enumerate(writer.rows):
        for key in ("input", "second", "real", "coded"):
            slot = row[key]
            if slot >= 0:
                first[slot], last[slot] = min(first[slot], number), max(last[slot], number)
    last[writer.slots[writer.program.output, "real"]] = len(writer.rows)
    offsets: dict[int, int] = {}
    for slot in sorted(range(count), key=lambda s: -writer.bytes[s]):
        overlapping = sorted(
            (offsets[other], offsets[other] + writer.bytes[other])
            for other in offsets
            if first[other] <= last[slot] and first[slot] <= last[other]
        )
        offset = 0
        for start, end in overlapping:
            if start - offset >= writer.bytes[slot]:
                break
            offset = max(offset, end)
        offsets[slot] = offset
    return np.array([(offsets[s], writer.bytes[s]) for s in range(count)], np.int64)
