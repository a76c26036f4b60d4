"""Training faces with what a teacher's hidden units say of them: the data of mimic and transfer.

The teacher is a face network as a graph, such as the default model's original. Its units are
those of the embedding and, averaged over positions, the last maps of the two smallest sizes.
Views are those of ``converters.training.teacher``: the crops, and new faces blended of two.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from edgeid.converters.graphs.torch_graph import GraphModule, to_torch
from edgeid.converters.training.faces import Crops, FaceSet, augment
from edgeid.converters.training.teacher import make_view
from edgeid.converters.training.training import face_input
from edgeid.runtime.graph import Graph
from edgeid.runtime.replacement import replace_file

Floats = NDArray[np.float32]
BATCH = 64
POOLED = 2  # sizes of maps whose averages are units beside the embedding


def hidden_units(module: GraphModule, inputs: Tensor, *, fast: bool = False) -> Floats:
    """(N, units) of the embedding, scaled to unit length, and of the pooled maps.

    ``fast`` computes in bfloat16: half the time, an error of about one per cent.
    """
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=fast):
        values = module.activations(inputs)
    last = {tuple(v.shape[2:]): v for v in values.values() if v.ndim == 4}
    maps = [last[size] for size in sorted(last)[:POOLED]]
    embedding = torch.nn.functional.normalize(values[module.graph.entries[0].output].float())
    parts = [embedding, *(each.float().mean(dim=(2, 3)) for each in maps)]
    return np.asarray(torch.cat(parts, dim=1).numpy(), np.float32)


def units_of(graph: Graph, crops: Crops, *, mirrored: bool = False, fast: bool = False) -> Floats:
    """``hidden_units`` of (N, 112, 112) crops; ``mirrored``: averaged with the mirror image's."""
    module = to_torch(graph).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rows = []
    for start in tqdm(range(0, len(crops), BATCH), desc="teacher", unit="batch", mininterval=10):
        part = crops[start : start + BATCH]
        units = hidden_units(module, face_input(part), fast=fast)
        if mirrored:
            mirror = np.ascontiguousarray(part[:, :, ::-1])
            both = units + hidden_units(module, face_input(mirror), fast=fast)
            units = np.asarray(both / 2, np.float32)
        rows.append(units)
    return np.concatenate(rows)


@dataclass(frozen=True, eq=False)
class TaughtViews:
    """Views of the training crops and the units that the teacher answers to each.

    Attributes:
        crops: for each view (N, 112, 112); view 0 is the crops themselves.
        units: for each view (N, d), standardised over view 0.
        embeddings: for each view (N, e), the teacher's, unit length.
        labels: (N,) who is shown, in view 0.
        mean, spread: (d,) by which units were standardised.
    """

    crops: list[Crops]
    units: list[Floats]
    embeddings: list[Floats]
    labels: NDArray[np.int64]
    mean: Floats
    spread: Floats

    def first(self, count: int) -> TaughtViews:
        """So many of the views."""
        return replace(
            self,
            crops=self.crops[:count],
            units=self.units[:count],
            embeddings=self.embeddings[:count],
        )

    def draw(
        self, batch: int, rng: np.random.Generator, plain: float = 0.4, strength: float = 1.0
    ) -> tuple[Tensor, NDArray[np.intp], NDArray[np.intp]]:
        """Augmented inputs (batch, 1, 112, 96), and the crop and the view of each.

        A share of ``plain`` and its part of the rest are of view 0.
        """
        index = rng.integers(len(self.labels), size=batch)
        view = rng.integers(len(self.crops), size=batch)
        view[rng.random(batch) < plain] = 0
        return self.inputs(index, view, rng, strength), index, view

    def inputs(
        self,
        index: NDArray[np.intp],
        view: NDArray[np.intp],
        rng: np.random.Generator,
        strength: float = 1.0,
    ) -> Tensor:
        """Augmented network inputs of the crops ``index`` in the views ``view``."""
        pairs = zip(index, view, strict=True)
        return face_input(np.stack([augment(self.crops[v][i], rng, strength) for i, v in pairs]))

    def standardised(self, units: Floats) -> Floats:
        """Units of other people by the same mean and spread."""
        return np.asarray((units - self.mean) / self.spread, np.float32)


def taught_views(faces: FaceSet, graph: Graph, cache: Path, views: int, size: int) -> TaughtViews:
    """Views of ``faces`` labelled by ``graph``, whose embedding has ``size`` dimensions.

    What the teacher says of a view is kept in ``cache`` (named by the caller after the
    teacher); the views themselves, a few seconds' work each, follow from their numbers.
    """
    crops, answers = [faces.crops], []
    for number in range(1, views):
        rng = np.random.default_rng(number)
        made = [make_view(faces.crops, i, rng) for i in range(len(faces.crops))]
        crops.append(np.stack(made))
    for number, view in enumerate(crops):
        answers.append(_kept(cache / f"units-{number}.npy", graph, view, number == 0))
    mean, spread = answers[0].mean(axis=0), answers[0].std(axis=0)
    spread = np.where(spread > 1e-6, spread, 1.0).astype(np.float32)
    embeddings = [rows[:, :size] for rows in answers]
    lengths = [np.linalg.norm(rows, axis=1, keepdims=True) for rows in embeddings]
    return TaughtViews(
        crops=crops,
        units=[np.asarray((rows - mean) / spread, np.float32) for rows in answers],
        embeddings=[
            np.asarray(e / n, np.float32) for e, n in zip(embeddings, lengths, strict=True)
        ],
        labels=faces.labels,
        mean=mean,
        spread=spread,
    )


def _kept(path: Path, graph: Graph, crops: Crops, mirrored: bool) -> Floats:
    if path.is_file():
        return np.asarray(np.load(path, allow_pickle=False), np.float32)
    units = units_of(graph, crops, mirrored=mirrored, fast=True)
    stream = io.BytesIO()
    np.save(stream, units.astype(np.float16))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, stream.getvalue())
    return units.astype(np.float16).astype(np.float32)
