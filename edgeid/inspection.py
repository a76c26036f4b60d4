"""What is in a model file, in numbers."""

from __future__ import annotations

import hashlib
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeid.fingerprint import model_fingerprint
from edgeid.runtime.encoding import Tensor
from edgeid.runtime.errors import CalibrationError
from edgeid.runtime.format import ModelFile, read_model
from edgeid.runtime.fusion import MEASURES
from edgeid.runtime.graph import Graph
from edgeid.runtime.score import KINDS, MODALITIES, Calibration

FMRS = (1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class EntrySummary:
    """One network of the file: input shape, embedding size, layers, weights."""

    name: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    layers: int
    weights: int


@dataclass(frozen=True)
class EncodingSummary:
    """The tensors of one encoding: how many, their weights, their bytes in the file.

    What several tensors share, such as codebooks, is in the file once and counts once.
    """

    encoding: str
    tensors: int
    weights: int
    bytes: int


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and its false non-match rate, at a false match rate; None: not supported."""

    kind: str
    fmr: float
    threshold: float | None
    fnmr: float | None
    impostors: int
    people: int


@dataclass(frozen=True)
class ModelSummary:
    """A model file at a glance."""

    path: str
    bytes: int
    model_version: int
    fingerprint: str
    entries: tuple[EntrySummary, ...]
    operators: dict[str, int]
    encodings: tuple[EncodingSummary, ...]
    calibration: tuple[OperatingPoint, ...]
    scoring: dict[str, str]
    golden_vectors: int
    scales: int
    recipe: tuple[Any, ...]
    card: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return asdict(self)

    def lines(self, *, card: bool = False) -> list[str]:
        """The summary as text, on demand with the model card."""
        lines = [
            f"{self.path}: {self.bytes:,} bytes, model version {self.model_version}",
            f"fingerprint {self.fingerprint}",
            *_table(
                ["entry", "input", "output", "layers", "weights"],
                [[e.name, _shape(e.input), _shape(e.output), f"{e.layers:,}", f"{e.weights:,}"]
                 for e in self.entries],
            ),
            *_table(
                ["encoding", "tensors", "weights", "bytes"],
                [[e.encoding, f"{e.tensors:,}", f"{e.weights:,}", f"{e.bytes:,}"]
                 for e in self.encodings],
            ),
            *_table(["operator", "layers"], [[op, str(n)] for op, n in self.operators.items()]),
            *_table(
                ["score", "FMR", "threshold", "FNMR", "impostors", "people"],
                [[p.kind, f"{p.fmr:g}", _number(p.threshold, ".3f"), _number(p.fnmr, ".2%"),
                  f"{p.impostors:,}", f"{p.people:,}"] for p in self.calibration],
            ),
            "",
            *(f"{what}: {how}" for what, how in self.scoring.items()),
            f"golden vectors: {self.golden_vectors}",
            f"activations with an 8-bit form: {self.scales}",
            f"recipe: {'' if self.recipe else 'none'}".rstrip(),
        ]  # fmt: skip
        for number, step in enumerate(self.recipe, 1):
            lines += _step_lines(f"  {number} ", step)
        if card:
            lines += ["", "model card", *_card_lines(self.card, "  ")]
        return [_printable(line) for line in lines]


def _printable(line: str) -> str:
    """A file's text cannot steer the terminal: control characters become question marks."""
    return "".join(c if c.isprintable() else "?" for c in line)


def _step_lines(indent: str, step: Any) -> list[str]:
    """A pass of a recipe with its options; those that are empty say nothing."""
    if not isinstance(step, dict):
        return [f"{indent}{step}"]
    options = [f"{k} {_option(v)}" for k, v in step.items() if k != "pass" and v not in (None, [])]
    text = f"{step.get('pass', '?')}: {', '.join(options)}" if options else str(step.get("pass"))
    return textwrap.wrap(text, 96, initial_indent=indent, subsequent_indent=" " * len(indent))


def _option(value: Any) -> str:
    if isinstance(value, dict):
        return f"({', '.join(f'{k} {_option(v)}' for k, v in value.items())})"
    if isinstance(value, list):
        return " ".join(map(_option, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _card_lines(value: Any, indent: str) -> list[str]:
    """A JSON value as indented text; figures stay on one line."""
    if isinstance(value, dict) and "figure" in value:
        known = "value" in value
        rate = f"{value['value']:.2%}" if known else "not supported"
        bounds = f" [{value['low']:.2%}, {value['high']:.2%}]" if known else ""
        what = f"{value['what']}: {value['figure']}"
        return [f"{indent}{what} {rate}{bounds}, {value['comparisons']}"]
    if isinstance(value, dict):
        lines = []
        for key, item in value.items():
            if isinstance(item, dict | list):
                lines += [f"{indent}{key}:", *_card_lines(item, indent + "  ")]
            else:
                lines += _card_lines(f"{key}: {item}", indent)
        return lines
    if isinstance(value, list):
        return [line for item in value for line in _card_lines(item, indent)]
    return textwrap.wrap(str(value), 96, initial_indent=indent, subsequent_indent=indent + "  ")


def inspect_model(path: str | Path) -> ModelSummary:
    """Read a model file and sum it up. Raises ModelError as ``read_model`` does."""
    file = read_model(path)
    return ModelSummary(
        path=str(path),
        bytes=Path(path).stat().st_size,
        model_version=file.model_version,
        fingerprint=model_fingerprint(file),
        entries=tuple(_entry(file.graph, entry.name) for entry in file.graph.entries),
        operators=dict(Counter(layer.op for layer in file.graph.layers).most_common()),
        encodings=_encodings(file.graph),
        calibration=_calibration(file),
        scoring=_scoring(file),
        golden_vectors=len(file.golden),
        scales=len(file.graph.scales),
        recipe=tuple(file.recipe),
        card=file.card,
    )


def _entry(graph: Graph, name: str) -> EntrySummary:
    entry, layers = graph.entry(name), graph.layers_of(name)
    tensors = {tensor for layer in layers for tensor in layer.tensor_names()}
    return EntrySummary(
        name=name,
        input=entry.shape,
        output=graph.infer_shapes(name)[entry.output],
        layers=len(layers),
        weights=sum(_weights(graph.tensors[tensor]) for tensor in tensors),
    )


def _encodings(graph: Graph) -> tuple[EncodingSummary, ...]:
    groups: dict[str, list[Tensor]] = {}
    for tensor in graph.tensors.values():
        values = tensor.parts().get("values")
        # float32 and float16 share an encoding; which of the two it is matters to the reader.
        name = str(values.dtype) if tensor.encoding == "dense" and values is not None else ""
        groups.setdefault(name or tensor.encoding, []).append(tensor)
    return tuple(
        EncodingSummary(name, len(own), sum(map(_weights, own)), _stored_bytes(own))
        for name, own in sorted(groups.items())
    )


def _stored_bytes(tensors: list[Tensor]) -> int:
    """Bytes of the tensors' parts; equal parts are stored once."""
    parts = [part for tensor in tensors for part in tensor.parts().values()]
    sizes = {
        (p.dtype.str, p.shape, hashlib.sha256(np.ascontiguousarray(p).data).digest()): p.nbytes
        for p in parts
    }
    return sum(sizes.values())


def _weights(tensor: Tensor) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return count


def _calibration(file: ModelFile) -> tuple[OperatingPoint, ...]:
    calibration = Calibration.from_dict(file.calibration)
    points = []
    for kind in KINDS:
        curve = getattr(calibration, kind)
        for fmr in FMRS if curve is not None else ():
            try:
                threshold, fnmr = curve.threshold(fmr), curve.fnmr_at(fmr)
            except CalibrationError:
                threshold = fnmr = None
            points.append(OperatingPoint(kind, fmr, threshold, fnmr, curve.impostors, curve.people))
    return tuple(points)


def _scoring(file: ModelFile) -> dict[str, str]:
    """How scores come about, where there is more to say than cosine and fixed weights."""
    calibration = Calibration.from_dict(file.calibration)
    found = {}
    for kind in MODALITIES:
        backend = calibration.backend(kind)
        how = "cosine" if backend is None else f"Joint Bayesian, {len(backend.offset)} dimensions"
        if kind == "face" and file.face is not None and file.face.get("mirror"):
            how += ", of a face and its mirror image together"
        agreement = calibration.agreement(kind)
        if agreement is not None:
            how += f", less {agreement.weight:.2g} times what templates agree beyond the usual"
        found[f"{kind} scores"] = how
    fusion = calibration.fusion
    if fusion is not None:
        terms = zip(MEASURES.values(), (fusion.face_quality, fusion.voice_quality), strict=True)
        ranges = [f"{name} {term.low:.3g} to {term.high:.3g}" for name, term in terms if term]
        found["fusion by quality"] = ", ".join(ranges) or "no"
    return found


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _number(value: float | None, form: str) -> str:
    return "unsupported" if value is None else format(value, form)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A blank line, then left-aligned columns; nothing without rows."""
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    cells = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return ["", *cells]
