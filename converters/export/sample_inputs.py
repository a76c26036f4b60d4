"""Real inputs of a model's networks: to calibrate int8 with, and to check an export on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.alignment import landmark_input, landmark_points, to_grey
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.errors import AudioError, DataError, ImageError, QualityError
from edgeid.runtime.face import FaceFrontEnd, network_input
from edgeid.runtime.image import load_image
from edgeid.runtime.members import Members
from edgeid.runtime.model import DETECTOR, FACE, LANDMARKS, VOICE, Model
from edgeid.runtime.network_detector import detector_input, shrunk

PHOTOS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
RECORDINGS = (".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")
MOST_FILES = 128  # of one source, evenly spaced


def sample_inputs(
    model: Model, faces: Sequence[Path], voices: Sequence[Path]
) -> dict[str, FloatArray]:
    """Inputs by entry, float32 (n, *shape): faces, voices, and what detector and landmark network
    are given on the way.

    Files that show nobody, or in which nobody is heard, are left out. An entry that nothing
    was found for is missing, as are those that the model does not have.

    Args:
        model: its front ends read the files. Where it finds no landmarks (it takes aligned
            crops only), the model inside the package does.
        faces: folders or zip archives with photos, or aligned crops of 112 x 112 pixels.
        voices: folders or zip archives with recordings.

    Raises:
        DataError: a source is missing or holds no such file, or a file cannot be read.
    """
    found: dict[str, list[FloatArray]] = {FACE: [], LANDMARKS: [], DETECTOR: [], VOICE: []}
    if model.face_spec is not None:
        reader = _FaceReader(model)
        for source in faces:
            found[FACE] += reader.read(source)
        found[LANDMARKS], found[DETECTOR] = reader.seen, reader.pictures
    if model.voice_spec is not None:
        for source in voices:
            found[VOICE] += _read_voices(model, source)
    entries = {entry.name for entry in model.file.graph.entries}
    return {
        name: np.concatenate(parts) for name, parts in found.items() if parts and name in entries
    }


class _FaceReader:
    """Reads faces, and keeps what detector and landmark network are given meanwhile."""

    def __init__(self, model: Model) -> None:
        assert model.face_spec is not None
        self._spec = model.face_spec
        self.seen: list[FloatArray] = []
        self.pictures: list[FloatArray] = []
        has_landmarks = any(entry.name == LANDMARKS for entry in model.file.graph.entries)
        self._finder = model if has_landmarks else Model.load()
        self._front_end = FaceFrontEnd(self._spec, self._locate, self._finder.detector())

    def read(self, source: Path) -> list[FloatArray]:
        return [network_input(crop[None], self._spec) for crop in self._crops(source)]

    def _crops(self, source: Path) -> Iterator[NDArray[np.uint8]]:
        for where, content in _contents(source, PHOTOS):
            try:
                picture = load_image(content)
                if picture.shape[:2] == (self._spec.size, self._spec.size):
                    yield to_grey(picture)
                else:
                    self.pictures.append(detector_input([shrunk(to_grey(picture))[0]]))
                    yield self._front_end.read(picture, checks=False, several="largest").crop
            except QualityError:
                continue
            except ImageError as error:
                raise DataError(f"{where}: {error}") from error

    def _locate(self, crops: NDArray[np.uint8]) -> FloatArray:
        x = landmark_input(crops)
        self.seen.append(x)
        return landmark_points(self._finder.engine.run(LANDMARKS, x))


def _read_voices(model: Model, source: Path) -> list[FloatArray]:
    windows = []
    for where, content in _contents(source, RECORDINGS):
        try:
            windows.append(model.read_voice(content, checks=False).windows)
        except QualityError:
            continue
        except AudioError as error:
            raise DataError(f"{where}: {error}") from error
    return windows


def _contents(source: Path, endings: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Where it is, and the content, of at most ``MOST_FILES`` files with these endings."""
    members = Members(source)
    names = sorted(name for name in members.names if name.lower().endswith(endings))
    if not names:
        raise DataError(f"{source} holds no file that ends in {', '.join(endings)}")
    chosen = np.unique(np.linspace(0, len(names) - 1, MOST_FILES).astype(int))
    for index in chosen:
        yield f"{source}: {names[index]}", members.read(names[index])
