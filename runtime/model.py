"""A loaded model: images and recordings in, embeddings out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.alignment import landmark_input, landmark_points
from edgeid.runtime.audio import Recording
from edgeid.runtime.detection import Detector, make_detector
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import GoldenVectorError, ImageError, ModelError
from edgeid.runtime.face import FaceFrontEnd, FaceSample, FaceSpec, network_input
from edgeid.runtime.format import ModelFile, read_model
from edgeid.runtime.golden import check_golden
from edgeid.runtime.network_detector import NetworkDetector, check_detector
from edgeid.runtime.score import MODALITIES, Calibration
from edgeid.runtime.voice import VoiceSample, VoiceSpec, read_voice

if TYPE_CHECKING:
    from edgeid.runtime.image import ImageSource

FACE, VOICE, LANDMARKS, DETECTOR = "face", "voice", "landmarks", "detector"
BATCH = 32  # images or windows in one engine call; bounds the memory of large evaluations

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Embeddings:
    """One person's face and voice, each L2-normalised float32 (d,)."""

    face: Floats
    voice: Floats


class Model:
    """Face and voice networks of one ``.edgeid`` file, with their preprocessing.

    ``Model.load()`` gives the model inside the package. A model is safe to share between
    threads, as every engine is.
    """

    def __init__(
        self,
        file: ModelFile,
        *,
        engine: str = "auto",
        threads: int | None = None,
        detector: Detector | str | Path | None = None,
    ) -> None:
        self.file = file
        if self._has(DETECTOR):
            check_detector(file.graph, DETECTOR)
        self.engine = make_engine(file.graph, engine, threads)
        self.calibration = (
            Calibration.from_dict(file.calibration) if file.calibration else Calibration()
        )
        self.face_spec = FaceSpec.from_dict(file.face) if file.face is not None else None
        self.voice_spec = VoiceSpec.from_dict(file.voice) if file.voice is not None else None
        self._check_entries()
        self._check_golden()
        self._front_end: FaceFrontEnd | None = None
        self._detector = str(detector) if isinstance(detector, Path) else detector

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] = "default",
        engine: str = "auto",
        *,
        threads: int | None = None,
        detector: Detector | str | Path | None = None,
    ) -> Model:
        """Read a model file and check its golden vectors on the chosen engine.

        Args:
            path: an ``.edgeid`` file, or "default" for the one inside the package.
            engine: "auto" (native where it was built and the model has activation scales, else
                onnxruntime where installed, else reference), or one of these by name, or
                "litert".
            threads: for one inference; default ``EDGEID_THREADS``, else 1.
            detector: None for the model's own face detector, or OpenCV's Haar cascade where the
                file has none; "haar" for that, or the path of a YuNet ONNX file.

        Raises:
            ModelError: the file is missing, corrupt, too new, or does not reproduce its
                golden vectors.
            EngineError: the engine is not installed.
        """
        source = default_model() if str(path) == "default" else Path(path)
        return cls(read_model(source), engine=engine, threads=threads, detector=detector)

    def embed_face(self, image: ImageSource) -> Floats:
        """The embedding (d,) of the one face in an image.

        Raises:
            ImageError: the image cannot be read.
            QualityError: no face, several, too small, blurred, badly lit or turned away.
        """
        embedding: Floats = self.embed_aligned(self.read_face(image).crop[None])[0]
        return embedding

    def embed_voice(
        self, audio: Recording, rate: int | None = None, *, checks: bool = True
    ) -> Floats:
        """The embedding (d,) of the speaker: the mean over windows of speech, normalised.

        Raises:
            AudioError: the recording cannot be read.
            QualityError: silence, too little speech or clipping; not with ``checks=False``.
        """
        return self.embed_windows(self.read_voice(audio, rate, checks=checks).windows)

    def embed(self, image: ImageSource, audio: Recording, rate: int | None = None) -> Embeddings:
        """Face and voice of one person; raises as ``embed_face`` and ``embed_voice`` do."""
        crop, windows = self.read_face(image).crop, self.read_voice(audio, rate).windows
        return self.embed_prepared(crop, windows)

    def embed_prepared(self, crop: NDArray[np.uint8], windows: Floats) -> Embeddings:
        """An aligned crop (112, 112) and log-mel windows (n, 1, frames, mels) of one person, by
        one call of the engine."""
        faces = self._face_inputs(crop[None])
        outputs = self.engine.run_together({FACE: faces, VOICE: windows[:BATCH]})
        rest = self._run(VOICE, windows[BATCH:])
        voices = np.concatenate([outputs[VOICE], rest])
        voice = _normalised(voices.mean(axis=0, keepdims=True))
        return Embeddings(_mean_direction(outputs[FACE], 1)[0], voice[0])

    def embed_aligned(self, crops: NDArray[np.uint8]) -> Floats:
        """Aligned grey crops (N, 112, 112) uint8 -> embeddings (N, d).

        Raises:
            ImageError: another shape or dtype.
        """
        self._face()
        if not isinstance(crops, np.ndarray) or crops.dtype != np.uint8 or crops.ndim != 3:
            found = f"{getattr(crops, 'dtype', type(crops).__name__)} {np.shape(crops)}"
            raise ImageError(f"aligned crops must be uint8 (N, 112, 112), not {found}")
        return _mean_direction(self._run(FACE, self._face_inputs(crops)), len(crops))

    def embed_windows(self, windows: Floats) -> Floats:
        """Log-mel windows (n, 1, frames, mels) of one recording -> its embedding (d,)."""
        self._voice()
        mean = self._run(VOICE, windows).mean(axis=0, keepdims=True)
        embedding: Floats = _normalised(mean)[0]
        return embedding

    def read_face(
        self,
        image: ImageSource,
        *,
        checks: bool = True,
        several: Literal["refuse", "largest"] = "refuse",
    ) -> FaceSample:
        """Find, align and judge the face in an image; see ``FaceFrontEnd.read``."""
        if self._front_end is None:  # the detector loads OpenCV: only when it is needed
            self._front_end = FaceFrontEnd(self._face(), self._locator(), self.detector())
        return self._front_end.read(image, checks=checks, several=several)

    def read_voice(
        self, audio: Recording, rate: int | None = None, *, checks: bool = True
    ) -> VoiceSample:
        """Find and judge the speech in a recording; see ``voice.read_voice``."""
        return read_voice(audio, rate, self._voice(), checks=checks)

    def detector(self) -> Detector:
        """What finds faces: what was asked for, else the file's own network, else Haar."""
        if self._detector is None and self._has(DETECTOR):
            return NetworkDetector(lambda pictures: self._run(DETECTOR, pictures))
        return make_detector(self._detector)

    def _has(self, entry: str) -> bool:
        return any(found.name == entry for found in self.file.graph.entries)

    def _run(self, entry: str, x: Floats) -> Floats:
        parts = [self.engine.run(entry, x[i : i + BATCH]) for i in range(0, len(x), BATCH)]
        return np.concatenate(parts) if parts else self.engine.run(entry, x)

    def _face_inputs(self, crops: NDArray[np.uint8]) -> Floats:
        """(N, 112, 112) -> inputs (N, ...), or (2N, ...) with the mirror images behind them."""
        spec = self._face()
        x = network_input(crops, spec)
        return np.concatenate([x, x[..., ::-1]]) if spec.mirror else x

    def _locator(self) -> Callable[[NDArray[np.uint8]], Floats]:
        if not self._has(LANDMARKS):
            raise ModelError("this model has no landmark network: it embeds aligned crops only")
        return lambda crops: landmark_points(self._run(LANDMARKS, landmark_input(crops)))

    def _face(self) -> FaceSpec:
        if self.face_spec is None:
            raise ModelError("this model has no face network")
        return self.face_spec

    def _voice(self) -> VoiceSpec:
        if self.voice_spec is None:
            raise ModelError("this model has no voice network")
        return self.voice_spec

    def _check_entries(self) -> None:
        """Networks and preprocessing have to fit together before anything runs."""
        shapes = {entry.name: entry.shape for entry in self.file.graph.entries}
        wanted: dict[str, tuple[int, ...]] = {}
        if self.face_spec is not None:
            wanted[FACE] = (self.face_spec.channels, *self.face_spec.crop[2:])
        if self.voice_spec is not None:
            wanted[VOICE] = (1, self.voice_spec.frames, self.voice_spec.mels)
        if not wanted:
            raise ModelError("the model has neither a face nor a voice section")
        for name, shape in wanted.items():
            if shapes.get(name) != shape:
                raise ModelError(
                    f"the {name} network takes {shapes.get(name)}, its preprocessing gives {shape}"
                )
            graph = self.file.graph
            output = graph.infer_shapes(name)[graph.entry(name).output]
            if len(output) != 1:
                raise ModelError(f"the {name} network gives {output}, no embedding (d,)")
        for kind in MODALITIES:
            backend = self.calibration.backend(kind)
            if backend is not None:
                backend.check_entry(self.file.graph, kind)

    def _check_golden(self) -> None:
        proven: set[Any] = set()
        for golden in self.file.golden:
            check_golden(self.engine, self.file.graph, golden)
            proven.add(golden["entry"])
        missing = {entry.name for entry in self.file.graph.entries} - proven
        if missing:
            raise GoldenVectorError(f"no golden vector for {', '.join(sorted(missing))}")


def default_model() -> Path:
    """Where the model inside the package lies; ModelError if the package was built without."""
    path = Path(str(files("edgeid") / "default.edgeid"))
    if not path.is_file():
        raise ModelError(f"the package has no default model ({path}): give the path of a model")
    return path


def _mean_direction(outputs: Floats, count: int) -> Floats:
    """(V * count, d), one view of all behind the other -> (count, d): each one's mean."""
    views = _normalised(outputs).reshape(len(outputs) // max(count, 1), count, outputs.shape[1])
    return _normalised(views.sum(axis=0))


def _normalised(embeddings: Floats) -> Floats:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not np.isfinite(embeddings).all() or (lengths == 0).any():
        raise ModelError("the network gave an embedding that is zero or not finite")
    return np.asarray(embeddings / lengths, np.float32)
