"""Read a ``.pt2`` file (``torch.export.save``) into a graph, without running code out of it.

``torch.export.load`` falls back to pickle for whatever it cannot read otherwise, and hands
strings to sympy, which evaluates them. So the archive is looked through first: only raw
tensors, tensors of a weights-only load, and plain arithmetic on batch sizes may be in it.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from edgeid.converters.graphs.torch_graph import exported_graph
from edgeid.runtime.errors import DataError, EdgeIDError, GraphError
from edgeid.runtime.graph import Graph

MAX_BYTES = 2**31
_SYMBOL = r"Symbol\('[su]\d+'(?:, (?:positive|nonnegative|integer)=True)*\)"
_ARITHMETIC = re.compile(rf"(?:{_SYMBOL}|(?:Add|Mul|Integer)\(|[su]\d+|\d+|[-+*/(), ])*")


def import_pt2(path: Path, entry: str) -> Graph:
    """The network of an exported program as a graph with one entry.

    Args:
        path: of a file that ``torch.export.save`` wrote; the program takes one float32
            tensor (N, *shape) and gives one.
        entry: name of the entry.

    Raises:
        DataError: the file is missing, is no ``.pt2`` archive, or holds pickled objects.
        GraphError: the program takes more than one input, or holds operators that are not
            supported.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check_archive(archive)
        program = torch.export.load(io.BytesIO(content))
    except EdgeIDError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # torch raises many kinds
        raise DataError(f"{path} is no .pt2 file that torch can read: {error}") from error
    inputs = program.graph_signature.user_inputs
    if len(inputs) != 1:
        raise GraphError(f"{path}: the program takes {len(inputs)} inputs, one is needed")
    return exported_graph(program, entry)


def _check_archive(archive: zipfile.ZipFile) -> None:
    """Raise DataError unless reading the archive can run no code."""
    if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
        raise DataError(f"the archive unpacks to more than {MAX_BYTES:,} bytes")
    names = archive.namelist()
    if not any("/models/" in name for name in names):
        raise DataError("no model in the archive: write it with torch.export.save of torch 2.9+")
    for name in names:
        if name.endswith("_config.json"):
            config = json.loads(archive.read(name))["config"]
            pickled = [key for key, value in config.items() if value.get("use_pickle") is not False]
            if pickled:
                raise DataError(f"{pickled[0]!r} is a pickled object, which could run any code")
        elif "/models/" in name:
            _check_expressions(json.loads(archive.read(name)))
        elif "/sample_inputs/" in name:  # torch would fall back to pickle where this fails
            torch.load(io.BytesIO(archive.read(name)), weights_only=True, map_location="cpu")
        elif "/constants/" in name and not name.rsplit("/", 1)[1].startswith("tensor_"):
            raise DataError(f"{name} is an object of another kind than a tensor")


def _check_expressions(model: Any) -> None:
    for text in _expressions(model):
        if not isinstance(text, str) or not _ARITHMETIC.fullmatch(text):
            raise DataError(f"a size is given as {text!r:.80}, more than plain arithmetic")


def _expressions(value: Any) -> Iterator[Any]:
    """Whatever torch would hand to sympy."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "expr_str":
                yield item
            else:
                yield from _expressions(item)
    elif isinstance(value, list):
        for item in value:
            yield from _expressions(item)
