"""Entries of a graph -> files of another format: make, run beside the model, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeid.converters.export.agreement import (
    EXACT,
    QUANTISED,
    Agreement,
    agreement,
    run_onnx,
    run_tflite,
)
from edgeid.converters.export.formats import FORMATS
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import DataError
from edgeid.runtime.golden import golden_input
from edgeid.runtime.graph import Graph
from edgeid.runtime.replacement import replace_file

CHECKED = 8  # inputs on which a file is compared with the model
_SEEDS = (1, 2)


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        format: a key of ``FORMATS``.
        entries: names; none means all that the graph has.
        single: one ONNX file for all entries, in which they share what they share in the
            model, in place of a file for each.
        integer_only: see ``tflite_int8_bytes``.
    """

    format: str
    entries: tuple[str, ...] = ()
    single: bool = False
    integer_only: bool = False

    def validate(self) -> None:
        """Raise DataError where the options do not fit together."""
        if self.format not in FORMATS:
            raise DataError(f"format {self.format!r:.80}: choose one of {', '.join(FORMATS)}")
        if self.single and not self.format.startswith("onnx"):
            raise DataError(f"{self.format} files have one entry: only ONNX takes all in one file")
        if self.integer_only and self.format != "tflite-int8":
            raise DataError(f"{self.format} has floats: integers only are for tflite-int8")
        if len(set(self.entries)) != len(self.entries):
            raise DataError(f"an entry is named twice: {', '.join(self.entries)}")


@dataclass(frozen=True)
class ExportedFile:
    """A file that was written: its bytes, and by entry how it agrees with the model."""

    path: Path
    size: int
    agreement: dict[str, Agreement]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        entries = {name: asdict(found) for name, found in self.agreement.items()}
        return {"path": str(self.path), "bytes": self.size, "entries": entries}

    def lines(self) -> list[str]:
        """For people."""
        found = ", ".join(
            f"{name} {a.cosine:.6f} over {a.inputs} inputs" for name, a in self.agreement.items()
        )
        return [f"{self.path}: {self.size:,} bytes, lowest cosine to the model: {found}"]


def export_model(
    graph: Graph,
    out: Path,
    options: ExportOptions,
    samples: Mapping[str, FloatArray],
    notes: Mapping[str, str] | None = None,
) -> list[ExportedFile]:
    """Write the entries into the folder ``out``, which is made where it is missing.

    Args:
        graph: a valid graph.
        out: the folder; its files are called after the entry, or ``model`` with ``single``.
        options: what to write.
        samples: float32 (n, *shape) by entry: real inputs. They calibrate int8, and every file
            is compared with the reference engine on up to eight of them before it is
            written. An entry without is compared on random inputs, and cannot become int8.
        notes: text by key that the files carry.

    Raises:
        DataError: see ``ExportOptions.validate``; samples are missing or of another shape.
        GraphError: no such entry, or a layer that the format cannot express, by name.
        ModelError: a file does not answer as the model does, or cannot be written.
    """
    options.validate()
    names = options.entries or tuple(entry.name for entry in graph.entries)
    for name in names:
        graph.entry(name)
    out.mkdir(parents=True, exist_ok=True)
    groups = [("model", names)] if options.single else [(name, (name,)) for name in names]
    made = []
    for stem, group in groups:
        data = _file_bytes(graph, group, options, samples, notes or {})
        path = out / f"{stem}{FORMATS[options.format]}"
        found = _compare(graph, group, options, samples, data)
        for name, one in found.items():
            limit = QUANTISED if options.format == "tflite-int8" else EXACT
            one.require(limit, f"{path.name}, entry {name!r},")
        replace_file(path, data)
        made.append(ExportedFile(path, len(data), found))
    return made


def export_tflite_int8(graph: Graph, entry: str, samples: FloatArray, path: Path) -> ExportedFile:
    """Write one entry as an int8 TFLite model to ``path``; see ``tflite_int8_bytes``.

    Raises:
        DataError, GraphError, ModelError: as ``export_model``.
    """
    options, group, inputs = ExportOptions("tflite-int8"), (entry,), {entry: samples}
    data = _file_bytes(graph, group, options, inputs, {})
    found = _compare(graph, group, options, inputs, data)
    found[entry].require(QUANTISED, path.name)
    replace_file(path, data)
    return ExportedFile(path, len(data), found)


def _file_bytes(
    graph: Graph,
    group: Sequence[str],
    options: ExportOptions,
    samples: Mapping[str, FloatArray],
    notes: Mapping[str, str],
) -> bytes:
    # imported here: ONNX files need nothing of TFLite, and the other way round
    if options.format in ("onnx", "onnx-codebook"):
        from edgeid.converters.export.onnx_model import onnx_bytes

        return onnx_bytes(graph, group, decoded=options.format == "onnx", notes=notes)
    (name,) = group
    description = "\n".join(f"{key}: {text}" for key, text in notes.items())
    if options.format == "tflite":
        from edgeid.converters.export.tflite_layers import tflite_bytes

        return tflite_bytes(graph, name, description)
    from edgeid.converters.export.tflite_int8 import tflite_int8_bytes

    if not len(samples.get(name, ())):
        raise DataError(f"int8 is calibrated with samples, and there are none of entry {name!r}")
    return tflite_int8_bytes(
        graph, name, samples[name], description, integer_only=options.integer_only
    )


def _compare(
    graph: Graph,
    group: Sequence[str],
    options: ExportOptions,
    samples: Mapping[str, FloatArray],
    data: bytes,
) -> dict[str, Agreement]:
    engine = make_engine(graph, "reference")
    inputs = {name: _checked_inputs(graph, name, samples.get(name)) for name in group}
    if options.format.startswith("onnx"):
        got = run_onnx(data, {f"{name}_input": x for name, x in inputs.items()})
    else:
        got = {f"{name}_output": run_tflite(data, x) for name, x in inputs.items()}
    return {
        name: agreement(engine.run(name, x), got[f"{name}_output"]) for name, x in inputs.items()
    }


def _checked_inputs(graph: Graph, name: str, samples: FloatArray | None) -> FloatArray:
    if samples is None or not len(samples):
        shape = graph.entry(name).shape
        return np.concatenate([golden_input(seed, shape) for seed in _SEEDS])
    chosen = np.linspace(0, len(samples) - 1, min(CHECKED, len(samples))).astype(int)
    return np.asarray(samples[chosen])
