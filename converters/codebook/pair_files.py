"""Coded pairs as files, from which an interrupted conversion goes on."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch

from edgeid.converters.codebook.coded_weights import CodedPair, Coding
from edgeid.converters.codebook.pairing import Pair
from edgeid.runtime.graph import Graph
from edgeid.runtime.replacement import replace_file


def pair_file(folder: Path, number: int) -> Path:
    """Of the pair with this number."""
    return folder / f"pair-{number:03}.npz"


def write_pair(pair: CodedPair, path: Path) -> None:
    """Beside the old file, then renamed there."""
    arrays = {"codewords": pair.codewords.numpy(), "error": np.array(pair.error)}
    for number, name in enumerate(pair.shapes):
        arrays[f"gains-{number}"] = pair.gains[name].numpy()
        arrays[f"indices-{number}"] = pair.indices[name].numpy().astype(np.uint8)  # K <= 256
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, stream.getvalue())


def read_pair(path: Path, pair: Pair, graph: Graph, coding: Coding) -> CodedPair | None:
    """A pair that was kept; None where there is none, or not a whole one."""
    shapes = {name: graph.tensors[name].shape for name in pair.tensors}
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            names = list(shapes)
            kept = CodedPair(
                codewords=torch.from_numpy(stored["codewords"]),
                gains={n: torch.from_numpy(stored[f"gains-{i}"]) for i, n in enumerate(names)},
                indices={
                    n: torch.from_numpy(stored[f"indices-{i}"].astype(np.int64))
                    for i, n in enumerate(names)
                },
                shapes=dict(shapes),
                error=float(stored["error"]),
            )
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return kept if kept.codewords.shape[1:] == (coding.k, coding.r) else None
