"""Embeddings of the files of a data set."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.errors import AudioError, DataError, ImageError, QualityError
from edgeid.runtime.image import load_image
from edgeid.runtime.members import Members
from edgeid.runtime.score import Calibration

if TYPE_CHECKING:
    from edgeid.runtime.face_quality import FaceQuality
    from edgeid.runtime.voice import VoiceQuality

CROP_SIZE = 112
BATCH = 64

Progress = Callable[[int, int], None]
Embeddings = dict[str, NDArray[np.float32] | None]
Crop = NDArray[np.uint8]


Measures = dict[str, float]  # the quality of samples by name, as fusion looks at it


class FaceRead(Protocol):
    """What evaluation needs of a face that was read: the aligned grey crop (112, 112)."""

    @property
    def crop(self) -> Crop: ...

    @property
    def quality(self) -> FaceQuality: ...


class VoiceRead(Protocol):
    """What evaluation needs of a voice that was read: windows (n, 1, frames, mels)."""

    @property
    def windows(self) -> NDArray[np.float32]: ...

    @property
    def quality(self) -> VoiceQuality: ...


class EvaluatedModel(Protocol):
    """What evaluation needs of a model."""

    @property
    def calibration(self) -> Calibration | None: ...

    def embed_aligned(self, crops: Crop) -> NDArray[np.float32]: ...

    def read_face(self, image: bytes, *, checks: bool, several: Literal["largest"]) -> FaceRead: ...

    def read_voice(self, audio: bytes, *, checks: bool) -> VoiceRead: ...

    def embed_windows(self, windows: NDArray[np.float32]) -> NDArray[np.float32]: ...


def embed_images(
    model: EvaluatedModel,
    members: Members,
    names: Iterable[str],
    aligned: bool,
    progress: Progress | None = None,
    sharpness: Measures | None = None,
) -> Embeddings:
    """Embeddings (d,) of images by name; None where no face was found.

    Aligned images are crops of 112 x 112 pixels; of others the largest face is taken,
    without checks of its quality. How sharp it is goes into ``sharpness``. Raises DataError for
    a file that is no image.
    """
    embeddings: Embeddings = {}
    waiting: list[tuple[str, Crop]] = []

    def flush() -> None:
        if waiting:
            rows = model.embed_aligned(np.stack([crop for _, crop in waiting]))
            embeddings.update(zip((name for name, _ in waiting), rows, strict=True))
            waiting.clear()

    for name in track(sorted(set(names)), progress, "image"):
        try:
            crop = _crop(model, members, name, aligned, sharpness)
        except QualityError:
            embeddings[name] = None
            continue
        except ImageError as error:
            raise DataError(f"{members.path}: {name}: {error}") from error
        waiting.append((name, crop))
        if len(waiting) == BATCH:
            flush()
    flush()
    return embeddings


def _crop(
    model: EvaluatedModel, members: Members, name: str, aligned: bool, sharpness: Measures | None
) -> Crop:
    content = members.read(name)
    if not aligned:
        face = model.read_face(content, checks=False, several="largest")
        if sharpness is not None:
            sharpness[name] = face.quality.sharpness
        return face.crop
    image = load_image(content)
    if image.shape[:2] != (CROP_SIZE, CROP_SIZE):
        raise DataError(
            f"{members.path}: {name} is {image.shape[1]} x {image.shape[0]} pixels; aligned crops "
            "are 112 x 112 (for photos leave out the option for aligned images)"
        )
    if image.ndim == 2:
        return image
    import cv2

    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)


def embed_recordings(
    model: EvaluatedModel,
    members: Members,
    names: Iterable[str],
    progress: Progress | None = None,
    speech: Measures | None = None,
) -> Embeddings:
    """Embeddings (d,) of recordings by name, without checks; None where nothing is heard.

    The seconds of speech go into ``speech``. Raises DataError for a file that is no recording.
    """
    embeddings: Embeddings = {}
    for name in track(sorted(set(names)), progress, "recording"):
        try:
            voice = model.read_voice(members.read(name), checks=False)
            embeddings[name] = model.embed_windows(voice.windows)
            if speech is not None:
                speech[name] = voice.quality.speech
        except QualityError:
            embeddings[name] = None
        except AudioError as error:
            raise DataError(f"{members.path}: {name}: {error}") from error
    return embeddings


def track(items: Sequence[str], progress: Progress | None, unit: str) -> Iterator[str]:
    """The items, with ``progress(done, total)`` after each, or a bar on a terminal."""
    if progress is None:
        yield from _bar(items, unit)
        return
    for done, item in enumerate(items, start=1):
        yield item
        progress(done, len(items))


def _bar(items: Sequence[str], unit: str) -> Iterable[str]:
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    bar: Iterable[str] = tqdm(items, unit=unit, disable=not sys.stderr.isatty(), leave=False)
    return bar
