"""What the pipelines of ``benchmarks/peers.py`` read: networks, photos and recordings."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

SIZE = (640, 480)
SECONDS = 3


def prepare(work: Path, model: Path, teacher: Path, detector: Path) -> None:
    """Fill the folder ``work``; what is there already stays."""
    work.mkdir(parents=True, exist_ok=True)
    default = Path(str(files("edgeid"))) / "default.edgeid"
    for source, name in (
        (default, "default.edgeid"),
        (teacher, "mobilefacenet.onnx"),
        (detector, "yunet.onnx"),
    ):
        shutil.copyfile(source, work / name)
    _renew_golden(model, work / "model.edgeid")
    for name, number in (("enrol", 2), ("probe", 1)):
        _photo(Path(str(files("edgeid") / "samples" / f"ada-{number}.jpg")), work / f"{name}.jpg")
        _speech(Path(str(files("edgeid") / "samples" / f"ada-{number}.ogg")), work / f"{name}.wav")
    _speaker_networks(work)


def _renew_golden(source: Path, out: Path) -> None:
    """The model with golden vectors for all engines: files of before the native engine have
    none for it."""
    from dataclasses import replace

    from edgeid.runtime.engine import make_engine
    from edgeid.runtime.format import read_model, write_model
    from edgeid.runtime.golden import make_golden

    file = read_model(source)
    engine = make_engine(file.graph, "reference")
    golden = [make_golden(engine, file.graph, g["entry"], g["seed"]) for g in file.golden]
    write_model(replace(file, golden=golden), out)


def _photo(source: Path, out: Path) -> None:
    """The person in the middle of a picture as a camera gives it."""
    import cv2
    import numpy as np

    picture = cv2.imread(str(source))
    assert picture is not None
    scale = SIZE[1] / picture.shape[0]
    person = cv2.resize(picture, None, fx=scale, fy=scale)
    frame = np.full((SIZE[1], SIZE[0], 3), 96, np.uint8)
    left = (SIZE[0] - person.shape[1]) // 2
    frame[:, left : left + person.shape[1]] = person
    cv2.imwrite(str(out), frame)


def _speech(source: Path, out: Path) -> None:
    """The middle three seconds, 16 kHz."""
    import soundfile

    from edgeid.runtime.audio import resample

    samples, rate = soundfile.read(source, dtype="float32")
    spoken = resample(samples, rate, 16000)
    start = (len(spoken) - SECONDS * 16000) // 2
    soundfile.write(out, spoken[start : start + SECONDS * 16000], 16000)


def _speaker_networks(work: Path) -> None:
    missing = [name for name in ("resnet34", "ecapa") if not (work / f"{name}.onnx").is_file()]
    if not missing:
        return
    import torch

    from benchmarks.speaker_networks import ECAPA, ResNet34, write_onnx

    torch.manual_seed(1)
    for name, network in (("resnet34", ResNet34()), ("ecapa", ECAPA())):
        if name in missing:
            write_onnx(network, work / f"{name}.onnx")
