"""From images and recordings to embeddings: what is compared, its quality, and the time taken."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.errors import InputError
from edgeid.templates import Vectors

if TYPE_CHECKING:
    from edgeid.runtime.audio import Recording
    from edgeid.runtime.face import FaceSample
    from edgeid.runtime.format import ModelFile
    from edgeid.runtime.image import ImageSource
    from edgeid.runtime.score import Calibration
    from edgeid.runtime.voice import VoiceSample

Quality = Mapping[str, float]


class Embedder(Protocol):
    """What EdgeID needs of a model; ``edgeid.runtime.model.Model`` has it."""

    @property
    def calibration(self) -> Calibration: ...
    @property
    def file(self) -> ModelFile: ...
    def read_face(self, image: ImageSource) -> FaceSample: ...
    def read_voice(self, audio: Recording) -> VoiceSample: ...
    def embed_aligned(self, crops: NDArray[np.uint8]) -> Vectors: ...
    def embed_windows(self, windows: Vectors) -> Vectors: ...


@dataclass
class Stopwatch:
    """Milliseconds by stage; a stage that runs several times adds up."""

    milliseconds: dict[str, float] = field(default_factory=dict)
    _start: float = field(default_factory=time.perf_counter)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as a stage."""
        start = time.perf_counter()
        yield
        spent = (time.perf_counter() - start) * 1e3
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + spent

    def read(self) -> dict[str, float]:
        """The stages so far, and ``total`` since the watch was made."""
        return {**self.milliseconds, "total": (time.perf_counter() - self._start) * 1e3}


@dataclass(frozen=True, eq=False)
class Probe:
    """The embeddings of one attempt, (d,) each or None, and the quality of what was read."""

    face: Vectors | None
    voice: Vectors | None
    quality: Mapping[str, Quality]

    def __repr__(self) -> str:
        return f"Probe({', '.join(self.quality)})"


class Reader:
    """Reads inputs with a model; one object an attempt, since it keeps the time."""

    def __init__(self, model: Embedder, watch: Stopwatch) -> None:
        self._model = model
        self._watch = watch

    def probe(self, image: ImageSource | None, audio: Recording | None) -> Probe:
        """The attempt of one person.

        Raises:
            InputError: neither was given.
            ImageError, AudioError, QualityError: one cannot be used; the other is not
                fallen back to.
        """
        if image is None and audio is None:
            raise InputError("nothing to verify: give an image, a recording, or both")
        quality: dict[str, Quality] = {}
        face = voice = None
        if image is not None:
            face, quality["face"] = self.face(image)
        if audio is not None:
            voice, quality["voice"] = self.voice(audio)
        return Probe(face, voice, quality)

    def face(self, image: ImageSource) -> tuple[Vectors, Quality]:
        """The embedding (d,) of the one face in an image, and its quality."""
        with self._watch.stage("read_face"):
            sample = self._model.read_face(image)
        with self._watch.stage("embed_face"):
            embedding = self._model.embed_aligned(sample.crop[None])[0]
        return embedding, asdict(sample.quality)

    def voice(self, audio: Recording) -> tuple[Vectors, Quality]:
        """The embedding (d,) of the speaker of a recording, and its quality."""
        with self._watch.stage("read_voice"):
            sample = self._model.read_voice(audio)
        with self._watch.stage("embed_voice"):
            embedding = self._model.embed_windows(sample.windows)
        return embedding, asdict(sample.quality)

    def faces(self, images: Sequence[ImageSource]) -> tuple[list[Vectors], tuple[Quality, ...]]:
        """Embeddings and qualities of several images; errors say which image."""
        return _read_each("image", images, self.face)

    def voices(self, audio: Sequence[Recording]) -> tuple[list[Vectors], tuple[Quality, ...]]:
        """Embeddings and qualities of several recordings; errors say which one."""
        return _read_each("recording", audio, self.voice)


def _read_each(what: str, inputs: Sequence[Any], read: Any) -> tuple[list[Vectors], Any]:
    vectors, qualities = [], []
    for number, item in enumerate(inputs, 1):
        try:
            vector, quality = read(item)
        except InputError as error:
            raise type(error)(f"{describe(what, number, item)}: {error}") from error
        vectors.append(vector)
        qualities.append(quality)
    return vectors, tuple(qualities)


def describe(what: str, number: int, item: Any) -> str:
    """How a message names a sample: by its path where it has one."""
    return f"{what} {number} ({item})" if isinstance(item, str | Path) else f"{what} {number}"


def as_images(given: Any) -> list[Any]:
    """A list of images, also from a single one."""
    single = isinstance(given, str | os.PathLike | bytes | np.ndarray)
    return [given] if single else _listed("images", given)


def as_recordings(given: Any) -> list[Any]:
    """A list of recordings, also from a single one, such as ``(samples, rate)``."""
    single = isinstance(given, str | os.PathLike | bytes)
    if isinstance(given, tuple) and len(given) == 2:
        single = isinstance(given[1], int | np.integer)
    return [given] if single else _listed("audio", given)


def _listed(what: str, given: Any) -> list[Any]:
    try:
        return list(given)
    except TypeError:
        raise InputError(f"{what} must be a list, not {type(given).__name__}") from None
