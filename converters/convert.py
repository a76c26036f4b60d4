"""Two trained networks -> one ``.edgeid`` file: load, compress, prove, calibrate, write, verify."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeid.converters.compression import Compressed, Limits, compress
from edgeid.converters.model_scores import Scoring, score_model
from edgeid.converters.named_recipes import Ladder, named_ladder
from edgeid.converters.network_files import Networks, face_spec
from edgeid.converters.people import People
from edgeid.converters.quantisation.activations import ActivationScales
from edgeid.converters.quantisation.encode import Encode, Weights
from edgeid.converters.quantisation.palette import Palette
from edgeid.converters.recipe import Context, recipe_to_json, stored_bytes
from edgeid.converters.report.steps import Judge
from edgeid.converters.training.detector_scenes import make_scene
from edgeid.converters.training.face_pictures import Faces
from edgeid.converters.training.faces import FaceSet
from edgeid.runtime.alignment import (
    LANDMARK_SIZE,
    TEMPLATE,
    cut,
    landmark_input,
    points_to_crop,
    to_grey,
)
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import DataError, ModelError
from edgeid.runtime.face import FaceSpec
from edgeid.runtime.format import ModelFile, write_model
from edgeid.runtime.golden import make_golden
from edgeid.runtime.graph import Graph, merge_graphs
from edgeid.runtime.model import DETECTOR, FACE, LANDMARKS, VOICE, Model
from edgeid.runtime.network_detector import detector_input
from edgeid.runtime.score import Calibration
from edgeid.runtime.voice import VoiceSpec

GOLDEN_SEEDS = (1, 2)
LANDMARK_SAMPLES = 256
DETECTOR_SAMPLES = 128
RESERVE = 24 * 1024  # bytes of a file for golden vectors, calibration and what else is no graph


@dataclass(frozen=True)
class ConvertOptions:
    """How a model file is made.

    Attributes:
        ladder: recipes to choose from; landmark network and detector take no part in them.
        limits: what the face and voice networks have to keep to; the budget is of the whole
            file.
        weights: how landmark network and detector are stored, see ``Encode``.
        scoring: see ``score_model``.
        calibrated: whether to give the model thresholds and score fusion, by the people who
            were held out. Without them it embeds but cannot decide.
        samples: of each network that passes work with, at most.
        seed, threads: see ``Context``.
        card: who trained it on what, and the terms.
        version: counts up with each release of a model.
        landmark_bits: store kernels of the landmark network as indices of so many bits into
            a palette, 1..12; None: as ``weights``. (A palette costs the detector faces.)
        face: preprocessing of faces; None chooses it by the network's input channels.
        voice: preprocessing of voices.
    """

    ladder: Ladder = field(default_factory=lambda: named_ladder("plain"))
    limits: Limits = field(default_factory=Limits)
    weights: Weights = "float16"
    scoring: Scoring = "cosine"
    calibrated: bool = True
    samples: int = 6000
    seed: int = 1
    threads: int = 1
    card: dict[str, Any] | None = None
    version: int = 1
    landmark_bits: int | None = None
    face: FaceSpec | None = None
    voice: VoiceSpec = field(default_factory=VoiceSpec)

    def __post_init__(self) -> None:
        if self.landmark_bits is not None:
            Palette(self.landmark_bits)  # better to know before the work of hours than after it

    def encoded(self, network: Graph, bits: int | None = None) -> Graph:
        """A network beside face and voice as it is stored, its kernels by palette with ``bits``."""
        context = Context({}, Path(), self.seed)
        if bits is not None:
            network = Palette(bits).call(network, context).graph
        return Encode(self.weights).call(network, context).graph


@dataclass(frozen=True)
class ConvertReport:
    """What was written."""

    out: Path
    size: int
    parameters: dict[str, int]
    calibration: Calibration | None
    compressed: Compressed

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "out": str(self.out),
            "bytes": self.size,
            "parameters": self.parameters,
            "recipe": recipe_to_json(self.compressed.recipe),
            "drops": self.compressed.drops,
            "tried": list(self.compressed.tried),
            "passes": [step.report.to_dict() for step in self.compressed.steps if step.report],
            "calibration": self.calibration.to_dict() if self.calibration else None,
        }

    def lines(self) -> list[str]:
        """For people: what was tried, every pass, the result."""
        lines = [f"tried: {line}" for line in self.compressed.tried]
        for step in self.compressed.steps:
            lines += step.report.text() if step.report else []
        return [*lines, *self.summary()]

    def summary(self) -> list[str]:
        """For people: the result."""
        lines = [f"wrote {self.out}: {self.size:,} bytes"]
        lines += [f"  {name}: {count:,} weights" for name, count in self.parameters.items()]
        for entry, drop in self.compressed.drops.items():
            lines.append(f"  {entry}: {drop:+.2f} percentage points of errors on people held out")
        if self.calibration is None:
            lines.append("  no calibration: it can embed, and cannot decide")
        return lines


def convert(
    networks: Networks,
    out: Path,
    options: ConvertOptions | None = None,
    people: People | None = None,
    judge: Judge | None = None,
    work: Path | None = None,
) -> ConvertReport:
    """Bring trained networks into one model file, and check the file.

    Args:
        networks: see ``load_networks``.
        people: whose faces and voices passes learn from, and, held out, give thresholds. A
            plain conversion without calibration needs none.
        judge: measures a graph on held-out people, for ``limits.max_drop``.
        work: folder of finished passes, from which an interrupted run goes on; None: one
            beside ``out``, which is removed when the file is written.

    Raises:
        DataError: people are missing, or the limits cannot be kept.
        GraphError: a network does not fit its preprocessing, or a pass.
        CalibrationError: there are too few people held out.
        ModelError: the file cannot be written; a file at ``out`` is left as it was.
    """
    options = options or ConvertOptions()
    if options.calibrated and people is None:
        raise DataError("no people to calibrate with: give faces and voices, or no calibration")
    check_folder(out)
    folder = work or work_folder(out)
    pair, limits = networks.pair(), options.limits
    if limits.budget is not None:
        limits = replace(limits, budget=graph_budget(limits.budget, networks, options))
    compressed = compress(pair, options.ladder, _context(people, options, folder), limits, judge)
    graph = compressed.graph
    samples = people.faces[0] if graph.scales and people is not None and people.faces else None
    if networks.landmarks is not None:
        stored = options.encoded(networks.landmarks, options.landmark_bits)
        landmarks = merge_graphs(landmarks=stored)
        if samples is not None:
            landmarks = _scaled(landmarks, LANDMARKS, _landmark_samples(samples, options), options)
        graph = _joined(graph, landmarks)
    if networks.detector is not None:
        detector = merge_graphs(detector=options.encoded(networks.detector))
        if samples is not None:
            detector = _scaled(detector, DETECTOR, _detector_samples(samples, options), options)
        graph = _joined(graph, detector)
    model = Model(_file(graph, networks, compressed, options))
    scores = None
    if options.calibrated and people is not None:
        scores = score_model(model, people, options.scoring)
    file = replace(model.file, calibration=scores.to_dict() if scores else {})
    size = write_model(file, out)
    Model.load(out)  # what was written can be read, and still answers the same
    if work is None:
        shutil.rmtree(folder, ignore_errors=True)
    counts = {FACE: networks.face.weight_count, VOICE: networks.voice.weight_count}
    return ConvertReport(out, size, counts, scores, compressed)


def work_folder(out: Path) -> Path:
    """Where a conversion to ``out`` keeps what it has finished."""
    return out.with_name(f"{out.name}.work")


def graph_budget(budget: int, networks: Networks, options: ConvertOptions) -> int:
    """Bytes of a file's budget that are left for the graph of face and voice.

    Raises DataError where nothing is left.
    """
    taken = RESERVE
    if networks.landmarks is not None:
        taken += stored_bytes(options.encoded(networks.landmarks, options.landmark_bits))
    if networks.detector is not None:
        taken += stored_bytes(options.encoded(networks.detector))
    if budget <= taken:
        raise DataError(
            f"a budget of {budget:,} bytes: landmarks, detector, golden vectors and calibration "
            f"alone take {taken:,}"
        )
    return budget - taken


def _context(people: People | None, options: ConvertOptions, work: Path) -> Context:
    if people is None:
        return Context({}, work, options.seed, options.threads)
    inputs = people.training(options.samples)
    return Context(
        inputs.samples,
        work,
        options.seed,
        options.threads,
        labels=inputs.labels,
        fresh=people.fresh(),
    )


def _scaled(graph: Graph, entry: str, inputs: FloatArray, options: ConvertOptions) -> Graph:
    """With activation scales."""
    context = Context({entry: inputs}, Path(), options.seed, options.threads)
    return ActivationScales().call(graph, context).graph


def _landmark_samples(faces: FaceSet, options: ConvertOptions) -> FloatArray:
    """Faces as a detector would cut them out.

    Training crops are a little narrower than that: the missing border repeats the outermost
    pixels, which does for ranges of activations.
    """
    rng = np.random.default_rng(options.seed)
    chosen = rng.permutation(len(faces.crops))[:LANDMARK_SAMPLES]
    matrix = points_to_crop(TEMPLATE)
    crops = [cut(to_grey(faces.crops[i]), matrix, LANDMARK_SIZE) for i in chosen]
    return landmark_input(np.stack(crops))


def _detector_samples(faces: FaceSet, options: ConvertOptions) -> FloatArray:
    """Scenes made of the faces."""
    crops = Faces.aligned(faces.crops)
    draws = (np.random.default_rng([options.seed, i]) for i in range(DETECTOR_SAMPLES))
    return detector_input([make_scene(crops, rng).picture for rng in draws])


def _joined(graph: Graph, other: Graph) -> Graph:
    joined = Graph(
        (*graph.entries, *other.entries),
        (*graph.layers, *other.layers),
        {**graph.tensors, **other.tensors},
        {**graph.scales, **other.scales},
        {**graph.table_scales, **other.table_scales},
    )
    joined.validate()
    return joined


def _file(
    graph: Graph, networks: Networks, compressed: Compressed, options: ConvertOptions
) -> ModelFile:
    """The model file without calibration."""
    engine = make_engine(graph, "onnxruntime")
    names = [entry.name for entry in graph.entries]
    return ModelFile(
        graph=graph,
        face=(options.face or face_spec(networks.face)).to_dict(),
        voice=options.voice.to_dict(),
        golden=[make_golden(engine, graph, name, s) for name in names for s in GOLDEN_SEEDS],
        card=options.card or {},
        recipe=recipe_to_json(compressed.recipe),
        model_version=options.version,
    )


def check_folder(out: Path) -> None:
    """Better to know before the work of hours than after it."""
    if not out.parent.is_dir():
        raise ModelError(f"there is no folder {out.parent} to write {out.name} to")
