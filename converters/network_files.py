"""Trained networks out of files: training checkpoints, ONNX files, exported programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeid.converters.graphs.single_entry import decoded_entry
from edgeid.converters.graphs.torch_graph import export_torch
from edgeid.converters.networks.cnn20 import INPUT_SHAPE
from edgeid.converters.onnx_import.model import import_onnx
from edgeid.converters.onnx_import.pt2 import import_pt2
from edgeid.converters.training.checkpoint import is_model_file, load_network
from edgeid.converters.training.detector import load_detector
from edgeid.converters.training.faces import Crops
from edgeid.converters.training.landmarks import load_landmarks
from edgeid.converters.training.training import FACE_LEFT, FACE_MEAN, FACE_SCALE, FACE_WIDTH
from edgeid.runtime.alignment import landmark_input, landmark_points
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.face import FaceFrontEnd, FaceSpec
from edgeid.runtime.format import read_model
from edgeid.runtime.graph import Graph, merge_graphs
from edgeid.runtime.model import DETECTOR, FACE, LANDMARKS, VOICE
from edgeid.runtime.network_detector import INPUT_SHAPE as PICTURE_SHAPE
from edgeid.runtime.network_detector import NetworkDetector


@dataclass(frozen=True)
class Networks:
    """What is converted.

    Attributes:
        face, voice: one entry each.
        landmarks: finds eyes, nose and mouth; None: the model takes aligned crops only.
        detector: finds faces; None: OpenCV's Haar cascade does.
    """

    face: Graph
    voice: Graph
    landmarks: Graph | None = None
    detector: Graph | None = None

    def pair(self) -> Graph:
        """Face and voice in one graph."""
        return merge_graphs(face=self.face, voice=self.voice)

    def photo_reader(self, spec: FaceSpec) -> Callable[[bytes], Crops] | None:
        """What finds and aligns the face in a photo; None without landmarks."""
        if self.landmarks is None:
            return None
        engine = make_engine(self.landmarks, "auto")
        front_end = FaceFrontEnd(
            spec,
            lambda crops: landmark_points(engine.run(LANDMARKS, landmark_input(crops))),
            self._finder(),
        )
        return lambda photo: front_end.read(photo, several="largest").crop

    def _finder(self) -> NetworkDetector | None:
        if self.detector is None:
            return None
        engine = make_engine(self.detector, "auto")
        return NetworkDetector(lambda pictures: engine.run(DETECTOR, pictures))


def load_networks(
    face: Path, voice: Path, landmarks: Path | None = None, detector: Path | None = None
) -> Networks:
    """Networks from files.

    Args:
        face, voice: checkpoints of ``train_face`` and ``train_voice``, ONNX files, exported
            programs (.pt2) or model files (.edgeid) whose input fits the preprocessing.
        landmarks: checkpoint of ``train_landmarks``, or a model file that has such a network.
        detector: checkpoint of ``train_detector``, or a model file that has such a network.

    Raises:
        DataError: a file is missing or is none of these.
        GraphError: it holds operators that are not supported, or the two are swapped.
    """
    found = load_graph(face, FACE), load_graph(voice, VOICE)
    points = None
    if landmarks is not None:
        points = _of_model(landmarks, LANDMARKS) or export_torch(
            load_landmarks(landmarks), (1, 96, 96), LANDMARKS
        )
    finder = None
    if detector is not None:
        finder = _of_model(detector, DETECTOR) or export_torch(
            load_detector(detector), PICTURE_SHAPE, DETECTOR
        )
    return Networks(*found, points, finder)


def _of_model(path: Path, entry: str) -> Graph | None:
    """A network of a model file with its weights decoded; None where ``path`` is none."""
    return decoded_entry(read_model(path).graph, entry) if is_model_file(path) else None


def load_graph(path: Path, entry: str) -> Graph:
    """A network from a checkpoint, an ONNX file, an exported program or a model file."""
    if not path.is_file():
        raise DataError(f"no {entry} network at {path}")
    found = _of_model(path, entry)
    if found is not None:
        return found
    if path.suffix == ".onnx":
        return import_onnx(path, entry)
    if path.suffix == ".pt2":
        return import_pt2(path, entry)
    network = load_network(path)
    if network.average_time != (entry == VOICE):
        raise GraphError(f"{path} does not hold a {entry} network: are the two swapped?")
    return export_torch(network, INPUT_SHAPE, entry)


def face_spec(graph: Graph) -> FaceSpec:
    """Preprocessing for our own grey network, or for one that takes RGB in 0..255."""
    shape = graph.entry(FACE).shape
    if shape == INPUT_SHAPE:
        crop = (0, FACE_LEFT, 112, FACE_WIDTH)
        return FaceSpec(channels=1, crop=crop, mean=FACE_MEAN, scale=FACE_SCALE)
    if shape[0] in (1, 3) and shape[1:] == (112, 112):
        return FaceSpec(channels=shape[0], crop=(0, 0, 112, 112), mean=0.0, scale=1.0)
    raise GraphError(
        f"the face network takes {shape}: (1, 112, 96), (1, 112, 112) or (3, 112, 112) is needed"
    )
