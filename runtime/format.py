"""The ``.edgeid`` file: one JSON header and raw arrays; reading it runs nothing.

    0   8   magic  89 45 44 47 45 49 44 0A   (\\x89 E D G E I D \\n)
    8   4   format version, 1
    12  4   header length in bytes as stored, without padding
    16  4   flags: 1 where the header is deflated (a zlib stream), as this writer does it; else 0
    20  4   signature length, 0 (reserved for an Ed25519 section after the blobs)
    24  8   0 (reserved)
    32  32  SHA-256 over bytes 0..31 and everything from byte 64 to the end
    64      header: JSON, UTF-8, deflated or not, then zeros up to a multiple of 64
            blobs: each on a multiple of 64, zeros between and after

Numbers are little-endian. The order of the checks is the order of this table.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeid.runtime.blobs import BlobWriter, aligned, read_blobs
from edgeid.runtime.encoding import ENCODINGS, MAX_ELEMENTS, Tensor, check_shape
from edgeid.runtime.errors import GraphError, ModelError, ModelFormatError, ModelVersionError
from edgeid.runtime.graph import MAX_TENSORS, Graph, graph_from_dict, graph_to_dict
from edgeid.runtime.layer_json import check_int, check_ints, check_keys, check_name
from edgeid.runtime.replacement import replace_file
from edgeid.runtime.strict_json import dump_json, inflate, parse_json

MAGIC = b"\x89EDGEID\n"
FORMAT_VERSION = 1
DEFLATED = 1  # flag
PREFIX = struct.Struct("<8sIIII8s32s")
MAX_FILE = 256 << 20
MAX_HEADER = 4 << 20
MAX_GOLDEN = 64
MAX_EMBEDDING = 2048  # of more than so many values, as of maps, a golden vector keeps some
GOLDEN_VALUES = 128

_SECTIONS = {"face", "voice", "calibration", "golden", "card", "recipe", "model_version"}


@dataclass(frozen=True)
class ModelFile:
    """What an ``.edgeid`` file holds.

    ``face``, ``voice``, ``calibration``, ``card`` and ``recipe`` are JSON that their owners
    validate. ``golden`` is a list of {"entry", "seed", "embedding"}, with "native" where the
    graph has scales. ``model_version`` counts
    up from 1 with each release of a model, so that a device can refuse to go back.
    """

    graph: Graph
    face: dict[str, Any] | None = None
    voice: dict[str, Any] | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    golden: list[dict[str, Any]] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)
    recipe: list[Any] = field(default_factory=list)
    model_version: int = 1


def read_model(source: str | os.PathLike[str] | bytes) -> ModelFile:
    """Read and fully validate a model; its weights are views on the bytes read.

    Raises:
        ModelError: there is no such file, or it cannot be read.
        ModelFormatError: it is not an .edgeid file, or is truncated or corrupt.
        ModelVersionError: it needs a newer EdgeID.
        GraphError: its layers, tensors or sections are not valid.
    """
    if isinstance(source, bytes):
        return _parse(source)
    path = Path(source)
    try:
        return _parse(_read_bytes(path))
    except ModelError as error:
        raise type(error)(f"{path}: {error}") from error


def write_model(file: ModelFile, path: str | os.PathLike[str]) -> int:
    """Write a model beside ``path``, then rename it there. Returns the bytes written.

    Raises:
        ModelError: the disk is full or not writable; ``path`` is left as it was.
        ModelFormatError, GraphError: the model would not be readable again.
    """
    data = dump_model(file)
    replace_file(Path(path), data)
    return len(data)


def dump_model(file: ModelFile) -> bytes:
    """The bytes of a model file; equal models give equal bytes with one version of zlib.

    Raises:
        ModelFormatError, GraphError: the model would not be readable again.
    """
    file.graph.validate()
    blobs = BlobWriter()
    tensors = {
        name: _describe(file.graph.tensors[name], blobs) for name in sorted(file.graph.tensors)
    }
    header = dump_json(
        {name: getattr(file, name) for name in _SECTIONS}
        | {"graph": graph_to_dict(file.graph), "tensors": tensors, "blobs": blobs.table}
    )
    header = zlib.compress(header, 9)
    body = b"".join([header, bytes(aligned(len(header)) - len(header)), *blobs.chunks])
    prefix = PREFIX.pack(MAGIC, FORMAT_VERSION, len(header), DEFLATED, 0, bytes(8), bytes(32))
    data = seal(prefix + body)
    _parse(data)  # nothing is written that could not be read
    return data


def seal(data: bytes) -> bytes:
    """``data`` with the SHA-256 of its prefix renewed."""
    return data[:32] + _digest(data) + data[64:]


def _digest(data: bytes) -> bytes:
    digest = hashlib.sha256(data[:32])
    digest.update(memoryview(data)[64:])
    return digest.digest()


def _describe(tensor: Tensor, blobs: BlobWriter) -> dict[str, Any]:
    parts = tensor.parts()
    return {
        "encoding": tensor.encoding,
        "shape": list(tensor.shape),
        "attributes": {name: getattr(tensor, name) for name in tensor.attributes},
        "parts": {name: blobs.add(parts[name]) for name in sorted(parts)},
    }


def _read_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device never end
            raise ModelError("not a regular file")
        if status.st_size > MAX_FILE:
            raise ModelFormatError(f"{status.st_size} bytes, above the limit of {MAX_FILE}")
        with path.open("rb") as stream:
            return stream.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"the model file cannot be read: {reason}") from error


def _parse(data: bytes) -> ModelFile:
    header_length, deflated = _check_prefix(data)
    blobs_start = aligned(PREFIX.size + header_length)
    if any(data[PREFIX.size + header_length : blobs_start]):
        raise ModelFormatError("the padding after the header is not zero")
    text = data[PREFIX.size : PREFIX.size + header_length]
    header = check_keys(
        parse_json(inflate(text, MAX_HEADER) if deflated else text),
        _SECTIONS | {"graph", "tensors", "blobs"},
        "header",
    )
    blobs = read_blobs(header["blobs"], data, blobs_start)
    graph = graph_from_dict(header["graph"], _read_tensors(header["tensors"], blobs))
    sections = {name: header[name] for name in _SECTIONS}
    _check_sections(sections)
    _check_golden(sections["golden"], graph)
    return ModelFile(graph=graph, **sections)


def _check_prefix(data: bytes) -> tuple[int, bool]:
    """Length of the header and whether it is deflated, once the prefix and checksum are right."""
    if data[: len(MAGIC)] != MAGIC:
        raise ModelFormatError(f"not an .edgeid file: it begins with {data[:8]!r}")
    if len(data) < PREFIX.size:
        raise ModelFormatError(f"truncated: {len(data)} bytes, the prefix alone has {PREFIX.size}")
    _, version, header_length, flags, signature, reserved, digest = PREFIX.unpack_from(data)
    if version != FORMAT_VERSION:
        raise ModelVersionError(
            f"format version {version}; this EdgeID reads {FORMAT_VERSION}: update edgeid, "
            "or convert the model again"
        )
    if len(data) > MAX_FILE:
        raise ModelFormatError(f"{len(data)} bytes, above the limit of {MAX_FILE}")
    if not 2 <= header_length <= MAX_HEADER:
        raise ModelFormatError(f"header length {header_length} is outside 2..{MAX_HEADER}")
    if aligned(PREFIX.size + header_length) > len(data):
        raise ModelFormatError(
            f"truncated: {len(data)} bytes, the header ends at {PREFIX.size + header_length}"
        )
    if digest != _digest(data):
        raise ModelFormatError("the checksum does not match: damaged or cut short; copy it again")
    if flags not in (0, DEFLATED) or signature:
        raise ModelVersionError(
            f"flags {flags:#x} and signature length {signature} need a newer EdgeID: update edgeid"
        )
    if any(reserved):
        raise ModelFormatError("the reserved bytes 24..31 are not zero")
    return int(header_length), flags == DEFLATED


def _read_tensors(table: object, blobs: list[NDArray[Any]]) -> dict[str, Tensor]:
    if not isinstance(table, dict) or len(table) > MAX_TENSORS:
        raise ModelFormatError(f"tensors must be an object of at most {MAX_TENSORS} items")
    used: set[int] = set()
    total = 0
    tensors = {}
    for name, item in table.items():
        where = f"tensor {check_name(name, 'tensors')!r}"
        found = check_keys(item, {"encoding", "shape", "attributes", "parts"}, where)
        shape = check_ints(found["shape"], where)
        total += check_shape(shape, where)
        if total > MAX_ELEMENTS:  # blobs may be shared, so the size of the file is no limit
            raise ModelFormatError(f"{where}: more than {MAX_ELEMENTS} weights in all")
        parts = _parts(found["parts"], blobs, where)
        used.update(found["parts"].values())
        tensors[name] = _tensor(found, shape, parts, where)
    if len(used) != len(blobs):
        raise ModelFormatError(
            f"{len(blobs) - len(used)} of {len(blobs)} blobs belong to no tensor"
        )
    return tensors


def _parts(value: object, blobs: list[NDArray[Any]], where: str) -> dict[str, NDArray[Any]]:
    if not isinstance(value, dict):
        raise ModelFormatError(f"{where}: parts must be an object")
    for part, index in value.items():
        if not 0 <= check_int(index, where) < len(blobs):
            raise ModelFormatError(f"{where}: part {part!r:.80} is blob {index} of {len(blobs)}")
    return {part: blobs[index] for part, index in value.items()}


def _tensor(
    found: dict[str, Any], shape: tuple[int, ...], parts: Mapping[str, NDArray[Any]], where: str
) -> Tensor:
    encoding = found["encoding"]
    if not isinstance(encoding, str) or encoding not in ENCODINGS:
        raise ModelFormatError(
            f"{where}: encoding {encoding!r:.80}; known are {', '.join(ENCODINGS)}"
        )
    kind = ENCODINGS[encoding]
    attributes = check_keys(found["attributes"], set(kind.attributes), where)
    for value in attributes.values():
        check_int(value, where)
    try:
        return kind.from_parts(shape, parts, **attributes)
    except GraphError as error:
        raise GraphError(f"{where}: {error}") from error


def _check_sections(sections: dict[str, Any]) -> None:
    for name, kinds in (
        ("face", (dict, type(None))),
        ("voice", (dict, type(None))),
        ("calibration", (dict,)),
        ("golden", (list,)),
        ("card", (dict,)),
        ("recipe", (list,)),
    ):
        if not isinstance(sections[name], kinds):
            raise ModelFormatError(f"{name} has the wrong type {type(sections[name]).__name__}")
    if check_int(sections["model_version"], "model_version") < 1:
        raise ModelFormatError(f"model_version {sections['model_version']} must be 1 or more")


def _check_golden(golden: list[Any], graph: Graph) -> None:
    if len(golden) > MAX_GOLDEN:
        raise ModelFormatError(f"{len(golden)} golden vectors, more than {MAX_GOLDEN}")
    for index, item in enumerate(golden):
        where = f"golden vector {index}"
        exact = {"native"} if isinstance(item, dict) and "native" in item else set()
        found = check_keys(item, {"entry", "seed", "embedding"} | exact, where)
        entry = graph.entry(check_name(found["entry"], where))
        if check_int(found["seed"], where) < 0:
            raise ModelFormatError(f"{where}: seed {found['seed']} is negative")
        shape = graph.infer_shapes(entry.name)[entry.output]
        count = golden_count(math.prod(shape))
        for name in ("embedding", *exact):
            values = found[name]
            if not isinstance(values, list) or any(type(v) not in (int, float) for v in values):
                raise ModelFormatError(f"{where}: the {name} must be a list of numbers")
            if len(values) != count:
                raise ModelFormatError(
                    f"{where}: {len(values)} values, entry {entry.name!r} gives {shape}, "
                    f"of which {count} are kept"
                )


def golden_count(size: int) -> int:
    """How many of an output's values a golden vector keeps."""
    return size if size <= MAX_EMBEDDING else GOLDEN_VALUES
