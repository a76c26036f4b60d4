"""Two trained networks -> one ``.edgeid`` file: load, encode, prove, calibrate, write, verify."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgeid.converters.graphs.torch_graph import export_torch
from edgeid.converters.networks.cnn20 import INPUT_SHAPE
from edgeid.converters.onnx_import.model import import_onnx
from edgeid.converters.scores.calibration import CalibrationOptions, calibrate
from edgeid.converters.training.checkpoint import load_network
from edgeid.converters.training.faces import read_faces
from edgeid.converters.training.landmarks import load_landmarks
from edgeid.converters.training.speech import SpeechSet, read_speech
from edgeid.converters.training.training import FACE_LEFT, FACE_MEAN, FACE_SCALE, FACE_WIDTH
from edgeid.runtime.encoding import Tensor, encode_float16, encode_int8
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.face import FaceSpec
from edgeid.runtime.format import ModelFile, write_model
from edgeid.runtime.golden import make_golden
from edgeid.runtime.graph import Graph, merge_graphs
from edgeid.runtime.model import FACE, LANDMARKS, VOICE, Model
from edgeid.runtime.score import Calibration
from edgeid.runtime.voice import VoiceSpec, cut_windows

GOLDEN_SEEDS = (1, 2)
ENCODERS: dict[str, Callable[[NDArray[np.float32]], Tensor]] = {
    "float16": encode_float16,
    "int8": encode_int8,
}


@dataclass(frozen=True)
class ConvertOptions:
    """How a model file is made.

    Attributes:
        weights: "float16" or "int8" (one scale an output channel).
        data: folder with ``faces/`` and ``speech/``; its calibration people, who took no
            part in training, give thresholds and score fusion. None: the file has no
            calibration, and embeds but cannot decide.
        card: who trained it on what, and the terms.
        version: counts up with each release of a model.
        face: preprocessing of faces; None chooses it by the network's input channels.
        voice: preprocessing of voices.
    """

    weights: str = "float16"
    data: Path | None = None
    card: dict[str, Any] | None = None
    version: int = 1
    face: FaceSpec | None = None
    voice: VoiceSpec = field(default_factory=VoiceSpec)


@dataclass(frozen=True)
class ConvertReport:
    """What was written."""

    out: Path
    size: int
    parameters: dict[str, int]
    calibration: Calibration | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "out": str(self.out),
            "bytes": self.size,
            "parameters": self.parameters,
            "calibration": self.calibration.to_dict() if self.calibration else None,
        }

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"wrote {self.out}: {self.size:,} bytes"]
        lines += [f"  {name}: {count:,} weights" for name, count in self.parameters.items()]
        if self.calibration is None:
            lines.append("  no calibration: give --data with people the networks never saw")
        return lines


def convert(
    face: Path,
    voice: Path,
    landmarks: Path | None,
    out: Path,
    options: ConvertOptions | None = None,
) -> ConvertReport:
    """Bring trained networks into one model file, and check the file.

    Args:
        face, voice: checkpoints of ``train_face`` and ``train_voice``, or ONNX files whose
            input fits the preprocessing (faces: N x 1 or 3 x 112 x 112).
        landmarks: checkpoint of ``train_landmarks``; None: the model takes aligned crops only.

    Raises:
        DataError: a network or the data is missing.
        GraphError: a network does not fit its preprocessing, or holds operators that are
            not supported.
        CalibrationError: there are too few calibration people.
        ModelError: the file cannot be written; a file at ``out`` is left as it was.
    """
    options = options or ConvertOptions()
    graphs = {FACE: load_graph(face, FACE), VOICE: load_graph(voice, VOICE)}
    if landmarks is not None:
        graphs[LANDMARKS] = export_torch(load_landmarks(landmarks), (1, 96, 96), LANDMARKS)
    graph = encode_weights(merge_graphs(**graphs), options.weights)
    engine = make_engine(graph, "onnxruntime")
    model = Model(
        ModelFile(
            graph=graph,
            face=(options.face or face_spec(graphs[FACE])).to_dict(),
            voice=options.voice.to_dict(),
            golden=[make_golden(engine, graph, name, s) for name in graphs for s in GOLDEN_SEEDS],
            card=options.card or {},
            recipe=[{"pass": "encode", "weights": options.weights}],
            model_version=options.version,
        )
    )
    scores = calibrate_model(model, options.data) if options.data is not None else None
    file = replace(model.file, calibration=scores.to_dict() if scores else {})
    size = write_model(file, out)
    Model.load(out)  # what was written can be read, and still answers the same
    counts = {name: _count(one) for name, one in graphs.items()}
    return ConvertReport(out, size, counts, scores)


def load_graph(path: Path, entry: str) -> Graph:
    """A network from a training checkpoint or an ONNX file."""
    if not path.is_file():
        raise DataError(f"no {entry} network at {path}")
    if path.suffix == ".onnx":
        return import_onnx(path, entry)
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


def encode_weights(graph: Graph, weights: str) -> Graph:
    """Store matrices and kernels compactly; vectors (biases, slopes) stay float32."""
    if weights not in ENCODERS:
        raise DataError(f"weights cannot be stored as {weights!r}: {', '.join(ENCODERS)}")
    tensors = {
        name: ENCODERS[weights](tensor.decode()) if len(tensor.shape) > 1 else tensor
        for name, tensor in graph.tensors.items()
    }
    return replace(graph, tensors=tensors)


def calibrate_model(model: Model, data: Path) -> Calibration:
    """Measure the scores of people who took no part in training (METHODS: never development)."""
    _, faces = read_faces(data / "faces" / "train.zip").split()
    embedded = model.embed_aligned(faces.crops)
    by_face = {name: embedded[faces.labels == index] for index, name in enumerate(faces.identities)}
    assert model.voice_spec is not None
    archives = [data / "speech" / "train_sentences.zip"]
    _, speech = read_speech(archives, model.voice_spec).split()
    by_voice = one_set(embed_speakers(model, speech, model.voice_spec))
    return calibrate(by_face, by_voice, options=CalibrationOptions(probes=9))


def one_set(embedded: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The speakers of the set (the part of the name before "/") with the most comparisons.

    Speakers of different sets differ in room, microphone and accent too. Comparing them would
    make impostors look easier to tell apart than the users of one device are.
    """
    sets = {name.partition("/")[0] for name in embedded}
    groups = [{n: e for n, e in embedded.items() if n.startswith(f"{s}/")} for s in sorted(sets)]
    return max(groups, key=lambda group: len(group) * sum(map(len, group.values())))


def embed_speakers(
    model: Model, speech: SpeechSet, spec: VoiceSpec
) -> dict[str, NDArray[np.float32]]:
    """Embeddings (n, d) of every speaker's utterances that are long enough to decide on."""
    embedded = {}
    groups = zip(speech.speakers, speech.utterances, strict=True)
    for name, utterances in tqdm(groups, total=len(speech.speakers), desc="calibration speakers"):
        long = [u for u in utterances if len(u) >= spec.min_speech * spec.rate]
        if long:
            embedded[name] = np.stack([model.embed_windows(cut_windows(u, spec)) for u in long])
    return embedded


def _count(graph: Graph) -> int:
    return sum(int(np.prod(tensor.shape)) for tensor in graph.tensors.values())
