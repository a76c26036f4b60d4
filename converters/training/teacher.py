"""A customer's well-trained face CNN as teacher: its embeddings of many views of many faces."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgeid.converters.training.faces import SIDE, Crops, FaceSet, move, relight
from edgeid.runtime.errors import DataError, MissingExtraError

BATCH = 16  # the fastest on a small cache
MOVES = {"shift": 4.0, "turn": 8.0, "zoom": 0.08, "stretch": 0.06}  # of a new face, see ``move``
MIXED = 0.6  # share of new faces that are mixed of two


class OnnxTeacher:
    """A face network in ONNX that takes N x 3 x 112 x 112 RGB in 0..255."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError(
                "the teacher runs in onnxruntime: pip install edgeid[convert]"
            ) from error
        if not path.is_file():
            raise DataError(f"no teacher network at {path}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def embed(self, crops: Crops) -> NDArray[np.float32]:
        """L2-normalised (N, d) embeddings of grey (N, 112, 112) crops."""
        rgb = np.repeat(crops[:, None].astype(np.float32), 3, axis=1)
        return normalise(self._session.run(None, {self._input: rgb})[0])

    def embed_mirrored(self, crops: Crops) -> NDArray[np.float32]:
        """As ``embed``, averaged with the embedding of the mirror image."""
        return normalise(self.embed(crops) + self.embed(crops[:, :, ::-1]))


def normalise(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale every row to unit length."""
    return np.asarray(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), np.float32)


def make_view(crops: Crops, index: int, rng: np.random.Generator) -> Crops:
    """A new face near ``crops[index]``: moved, stretched, relit, and often mixed with another.

    The teacher says what the mixture looks like, so the student learns the teacher's function
    between the few thousand people that there are (Beyer et al. 2022, "A good teacher is
    patient and consistent").
    """
    view = move(crops[index], rng, **MOVES)
    if rng.random() < MIXED:
        other = move(crops[rng.integers(len(crops))], rng, **MOVES)
        share = _seam(rng) if rng.random() < 0.5 else rng.uniform(0.3, 0.7)
        view = (share * view + (1 - share) * other).astype(np.uint8)
    return relight(view, rng) if rng.random() < 0.5 else view


def _seam(rng: np.random.Generator) -> NDArray[np.float64]:
    """(112, 112) shares: one face on one side of a soft line near the middle, one on the other."""
    angle, width = rng.uniform(0, 2 * np.pi), rng.uniform(3, 12)
    along = np.arange(SIDE) - (SIDE - 1) / 2
    distance = np.cos(angle) * along[None, :] + np.sin(angle) * along[:, None]
    return np.asarray(1 / (1 + np.exp(-(distance - rng.uniform(-15, 15)) / width)))


@dataclass(frozen=True)
class View:
    """One view of every training crop, and what the teacher says of it."""

    crops: Crops  # (N, 112, 112)
    targets: NDArray[np.float32]  # (N, d), unit length


def label_view(faces: FaceSet, teacher: OnnxTeacher, number: int, cache: Path) -> View:
    """View ``number`` of every face, from ``cache`` if it was made before.

    View 0 is the plain crop with the mirror-averaged embedding; the others are new faces made
    by ``make_view`` with ``number`` as the seed.
    """
    path = cache / f"view-{number}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            view = View(stored["crops"], stored["targets"])
        if len(view.crops) == len(faces.crops):
            return view
    rng = np.random.default_rng(number)
    crops = faces.crops
    if number > 0:
        crops = np.stack([make_view(crops, i, rng) for i in range(len(crops))])
    embed = teacher.embed if number else teacher.embed_mirrored
    starts = tqdm(range(0, len(crops), BATCH), desc=f"teacher, view {number}", unit="batch")
    view = View(crops, np.concatenate([embed(crops[i : i + BATCH]) for i in starts]))
    cache.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part.npz")
    np.savez(beside, crops=view.crops, targets=view.targets)
    os.replace(beside, path)
    return view
