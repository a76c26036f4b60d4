"""Fixtures: a model small enough to compute by hand, and an empty template store."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.errors import (
    AudioError,
    FaceBlurredError,
    ImageError,
    TooLittleSpeechError,
)
from edgeid.runtime.format import ModelFile
from edgeid.runtime.graph import Entry, Gemm, Graph
from edgeid.runtime.score import Calibration, FmrCurve, Fusion
from edgeid.store import TemplateStore

BLURRED = 255


@dataclass(frozen=True)
class Quality:
    """Stands for the quality of a face or a voice."""

    level: float = 1.0


@dataclass(frozen=True)
class Sample:
    """Stands for a face that was read (``crop``) and for a voice that was read (``windows``)."""

    crop: NDArray[np.uint8]
    windows: NDArray[np.float32]
    quality: Quality = Quality()


def _curve(fmrs: tuple[float, ...], thresholds: tuple[float, ...]) -> FmrCurve:
    return FmrCurve(fmrs, thresholds, (0.0,) * len(fmrs), round(3 / fmrs[-1]), 100, 50)


# Thresholds at FMR 1e-3: face 0.6, voice 0.8, fused 5.
CALIBRATION = Calibration(
    face=_curve((1.0, 1e-2, 1e-4), (0.0, 0.4, 0.8)),
    voice=_curve((1.0, 1e-1, 1e-3), (0.0, 0.4, 0.8)),
    fused=_curve((1.0, 1e-2, 1e-5), (-10.0, 0.0, 15.0)),
    fusion=Fusion(bias=-10.0, face=15.0, voice=10.0),
)


class FakeModel:
    """Angles in whole degrees as inputs: the cosine of two inputs is that of their difference.

    An input is bytes, the path of a file, an array, or ``(samples, rate)``; its first value is
    the angle. The angle 255 is one that is not good enough.
    """

    def __init__(self, weight: float = 1.0, calibration: Calibration = CALIBRATION) -> None:
        layer = Gemm(name="fc", inputs=("x",), output="y", weight="w")
        graph = Graph(
            entries=(Entry("face", "x", (2,), "y"),),
            layers=(layer,),
            tensors={"w": encode_float32(np.full((2, 2), weight))},
        )
        self.file = ModelFile(graph=graph, calibration=calibration.to_dict())
        self.calibration = calibration

    def read_face(self, image: Any) -> Any:
        angle = _angle(image, ImageError)
        if angle == BLURRED:
            raise FaceBlurredError("the face is out of focus: hold still")
        return Sample(np.full((4, 4), angle, np.uint8), np.empty(0, np.float32))

    def read_voice(self, audio: Any) -> Any:
        angle = _angle(audio, AudioError)
        if angle == BLURRED:
            raise TooLittleSpeechError("0.10 s of speech: speak a whole sentence")
        return Sample(np.empty(0, np.uint8), np.full((3, 1), angle, np.float32))

    def embed_aligned(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        return unit(crops[:, 0, 0])

    def embed_windows(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(unit(windows[:, 0])[0], np.float32)


def _angle(given: Any, error: type[Exception]) -> float:
    if isinstance(given, str | Path):
        try:
            given = Path(given).read_bytes()
        except (OSError, ValueError) as problem:
            raise error(f"cannot read {given!r}") from problem
    values = given[0] if isinstance(given, tuple) else given
    if isinstance(values, bytes):
        values = np.frombuffer(values, np.uint8)
    if not np.size(values):
        raise error("the input is empty")
    return float(np.ravel(values)[0])


def unit(degrees: NDArray[Any]) -> NDArray[np.float32]:
    """(n,) degrees -> (n, 2) unit vectors."""
    radians = np.deg2rad(degrees.astype(np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def _rewrite(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A model file with its header changed in place, and lengths and checksum right again."""
    length, flags = struct.unpack_from("<2I", data, 12)
    text = data[64 : 64 + length]
    header = json.loads(zlib.decompress(text) if flags else text)
    blobs = data[-(-(64 + length) // 64) * 64 :]
    change(header)
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    prefix = data[:12] + struct.pack("<2I", len(text), 0) + data[20:32]
    body = text + bytes(-len(text) % 64) + blobs
    return prefix + hashlib.sha256(prefix + body).digest() + body


@pytest.fixture
def rewrite() -> Callable[[bytes, Callable[[dict[str, Any]], object]], bytes]:
    """Makes a hostile model file out of a good one."""
    return _rewrite


@pytest.fixture
def fake_model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An EDGEID_HOME of the test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("EDGEID_HOME", str(folder))
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where ``store`` is."""
    return tmp_path / "templates.db"


@pytest.fixture
def store(path: Path) -> Iterator[TemplateStore]:
    """An empty store under the key 0, 1, ... 31."""
    with TemplateStore(path, bytes(range(32)), busy_seconds=0.05) as opened:
        yield opened
