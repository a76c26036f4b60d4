"""Finished passes on the disk: one ``.edgeid`` file each, named by all that it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeid.runtime.errors import ModelError
from edgeid.runtime.format import ModelFile, read_model, write_model
from edgeid.runtime.graph import Graph, graph_to_dict


@dataclass(frozen=True)
class PassReport:
    """What one pass did.

    Attributes:
        name, options: of the pass; options are its JSON form.
        lines, figures: what the pass reports.
        bytes_before, bytes_after: of the weights; what tensors share counts once.
        similarity: mean cosine to the embeddings of the network that the recipe began with,
            for each entry that has samples.
        seconds: it took.
        resumed: it was read from the work folder instead of run.
    """

    name: str
    options: dict[str, Any]
    lines: tuple[str, ...]
    figures: dict[str, float | int | str]
    bytes_before: int
    bytes_after: int
    similarity: dict[str, float]
    seconds: float
    resumed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"lines": list(self.lines)}

    def text(self) -> list[str]:
        """For people: one head line, then those of the pass."""
        size = f"{self.bytes_before:,} -> {self.bytes_after:,} bytes"
        times = f"{self.bytes_before / self.bytes_after:.2f}x" if self.bytes_after else "-"
        how = "resumed" if self.resumed else f"{self.seconds:.1f} s"
        lines = [f"{self.name}: {size} ({times}), {how}", *(f"  {line}" for line in self.lines)]
        near = [f"{name} {cosine:.4f}" for name, cosine in self.similarity.items()]
        return [*lines, f"  cosine to the original: {', '.join(near)}"] if near else lines


@dataclass(frozen=True)
class Progress:
    """The finished passes under a folder."""

    work: Path

    @staticmethod
    def chain(key: str, step: dict[str, Any]) -> str:
        """Key of what ``step`` makes out of what ``key`` names."""
        return hashlib.sha256((key + json.dumps(step, sort_keys=True)).encode()).hexdigest()

    def folder(self, key: str) -> Path:
        """A pass's own folder."""
        return self.work / key

    def resume(
        self, keys: Sequence[str], graph: Graph
    ) -> tuple[int, Graph, tuple[PassReport, ...]]:
        """How many of the passes are done, their result (or ``graph``) and their reports."""
        for done in range(len(keys), 0, -1):
            found = self.read(keys[done - 1])
            if found is not None and len(found[1]) == done:
                return done, *found
        return 0, graph, ()

    def keep(self, key: str, graph: Graph, reports: Sequence[PassReport]) -> None:
        """Write the result of a pass; raises ModelError where the disk does not take it."""
        file = ModelFile(
            graph=graph,
            card={"reports": [report.to_dict() for report in reports]},
            recipe=[report.options for report in reports],
        )
        write_model(file, self._file(key))

    def _file(self, key: str) -> Path:
        return self.work / f"{key}.edgeid"

    def read(self, key: str) -> tuple[Graph, tuple[PassReport, ...]] | None:
        """The result of a pass and the reports up to it; None where it is not there and whole."""
        path = self._file(key)
        if not path.exists():
            return None
        try:
            file = read_model(path)
            reports = tuple(_report(value) for value in file.card["reports"])
        except (ModelError, KeyError, TypeError):  # damaged: the pass is run again
            return None
        return file.graph, reports


def _report(value: dict[str, Any]) -> PassReport:
    return PassReport(**value | {"lines": tuple(value["lines"]), "resumed": True})


def graph_key(graph: Graph, samples: Mapping[str, np.ndarray[Any, Any]], seed: int) -> str:
    """SHA-256 over layers, weights as stored, samples and seed."""
    digest = hashlib.sha256(json.dumps([graph_to_dict(graph), seed], sort_keys=True).encode())
    for name in sorted(graph.tensors):
        tensor = graph.tensors[name]
        head = [
            name,
            tensor.encoding,
            tensor.shape,
            [getattr(tensor, a) for a in tensor.attributes],
        ]
        digest.update(json.dumps(head).encode())
        for part, array in sorted(tensor.parts().items()):
            _add(digest, part, array)
    for name in sorted(samples):
        _add(digest, name, samples[name])
    return digest.hexdigest()


def _add(digest: Any, name: str, array: np.ndarray[Any, Any]) -> None:
    digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
    digest.update(np.ascontiguousarray(array).data)
