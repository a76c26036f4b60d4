"""The pipelines of ``benchmarks/peers.py``: a photo and a recording in, a decision out.

Each imports and loads what it needs and returns two functions of an image file and a sound file:
one enrols, one verifies.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import AbsentError
from benchmarks.engines import cosine

Floats = NDArray[np.float32]
Verify = Callable[[Path, Path], bool]

# where the eyes, the nose and the corners of the mouth lie in an aligned crop of 112 x 112
POINTS = ((38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20))


def edgeid(
    work: Path, threads: int, engine: str = "onnxruntime", detector: str | None = None
) -> tuple[Verify, Verify]:
    """Our own, with an encrypted store; None finds faces with OpenCV's Haar cascade."""
    os.environ["EDGEID_THREADS"] = str(threads)
    from edgeid import EdgeID, EdgeIDError

    path = str(work / ("default.edgeid" if engine == "onnxruntime" else "model.edgeid"))
    store = work / f"store-{os.getpid()}.db"
    finder = None if detector is None else work / detector
    try:
        verifier = EdgeID(path, store=store, key=bytes(32), engine=engine, detector=finder)
    except EdgeIDError as error:
        raise AbsentError(str(error)) from error

    def enrol(image: Path, audio: Path) -> bool:
        verifier.enroll("ann", images=[image], audio=[audio])
        store.unlink()  # it stays open
        return True

    return enrol, lambda image, audio: verifier.verify(image, audio, user="ann").accepted


def assembled(
    work: Path, threads: int, load: Callable[[Path, int], Callable[[Floats], Floats]], voice: str
) -> tuple[Verify, Verify]:
    """OpenCV's detector, alignment, and two networks, as ``load`` runs them."""
    import cv2

    cv2.setNumThreads(threads)
    detector = cv2.FaceDetectorYN.create(str(work / "yunet.onnx"), "", (640, 480), 0.6)
    networks = load(work / "mobilefacenet.onnx", threads), load(work / voice, threads)
    known: list[Floats] = []

    def embeddings(image: Path, audio: Path) -> list[Floats]:
        picture = cv2.imread(str(image))
        assert picture is not None
        detector.setInputSize(picture.shape[1::-1])
        face = detector.detect(picture)[1][0]
        points, places = face[4:14].reshape(5, 2), np.array(POINTS, np.float32)
        crop = cv2.warpAffine(picture, cv2.estimateAffinePartial2D(points, places)[0], (112, 112))
        x = np.ascontiguousarray(crop[:, :, ::-1].transpose(2, 0, 1)[None], np.float32)
        return [networks[0](x), networks[1](features(audio))]

    def enrol(image: Path, audio: Path) -> bool:
        known[:] = embeddings(image, audio)
        return True

    def verify(image: Path, audio: Path) -> bool:
        scores = [cosine(a, b) for a, b in zip(known, embeddings(image, audio), strict=True)]
        return scores[0] > 0.4 and scores[1] > 0.4

    return enrol, verify


def features(audio: Path) -> Floats:
    """(1, 297, 80) log-mel features of 3 s at 16 kHz, in numpy."""
    import soundfile

    from edgeid.runtime.logmel import log_mel
    from edgeid.runtime.voice import VoiceSpec

    samples, _ = soundfile.read(audio, dtype="float32")
    found = log_mel(samples, VoiceSpec(mels=80, hop=160, low=20.0))
    return np.asarray((found - found.mean(0))[None], np.float32)


def with_onnxruntime(path: Path, threads: int) -> Callable[[Floats], Floats]:
    """A session as onnxruntime comes."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: np.asarray(session.run(None, {name: x})[0])


def with_opencv(path: Path, _threads: int) -> Callable[[Floats], Floats]:
    """OpenCV's own inference."""
    import cv2

    network = cv2.dnn.readNetFromONNX(str(path))

    def run(x: Floats) -> Floats:
        network.setInput(x)
        return np.array(network.forward())

    return run


def dlib(_work: Path, threads: int) -> tuple[Verify, Verify]:
    """face_recognition and Resemblyzer, as their README files show them."""
    import face_recognition
    import torch
    from resemblyzer import VoiceEncoder, preprocess_wav

    torch.set_num_threads(threads)
    encoder = VoiceEncoder("cpu", verbose=False)
    known: list[Any] = []

    def embeddings(image: Path, audio: Path) -> list[Any]:
        face = face_recognition.face_encodings(face_recognition.load_image_file(image))[0]
        return [face, encoder.embed_utterance(preprocess_wav(audio))]

    def enrol(image: Path, audio: Path) -> bool:
        known[:] = embeddings(image, audio)
        return True

    def verify(image: Path, audio: Path) -> bool:
        face, voice = embeddings(image, audio)
        alike = bool(face_recognition.compare_faces([known[0]], face)[0])
        return alike and float(known[1] @ voice) > 0.75

    return enrol, verify


KINDS: dict[str, Callable[[Path, int], tuple[Verify, Verify]]] = {
    "edgeid": edgeid,
    "edgeid-native": partial(edgeid, engine="native"),
    "edgeid-yunet": partial(edgeid, engine="native", detector="yunet.onnx"),
    "ort-resnet34": partial(assembled, load=with_onnxruntime, voice="resnet34.onnx"),
    "ort-ecapa": partial(assembled, load=with_onnxruntime, voice="ecapa.onnx"),
    "opencv": partial(assembled, load=with_opencv, voice="ecapa.onnx"),
    "dlib": dlib,
}
