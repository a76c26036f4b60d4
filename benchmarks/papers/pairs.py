"""Paper 000: the two networks of a pair may differ in depth, width and kind.

    python -m benchmarks.papers.pairs [--pair mobilefacenet|vgg11|all] [--quick]

- ``mobilefacenet``: a customer's imported MobileFaceNet (RGB, 1 x 1 and depth-wise
  convolutions, 128 dimensions) with the half-width speaker CNN-20.
- ``vgg11``: the VGG11-bn that the reproduction of paper 003 trains (run
  ``benchmarks.papers.flame`` first; 64 x 64 pixels, ReLU, 512 channels) with the same speaker
  CNN-20.

Layers are paired in order, those left over have codebooks of their own; depth-wise and first
convolutions are not coded. What counts is how near the compressed networks are to the given
ones, before and after a short calibration, so K and r are the same everywhere and no search
is made. Data as in ``co_compress``; the development files are for the figures alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.papers.closed_set import look
from benchmarks.papers.closed_set import network_input as closed_set_input
from benchmarks.papers.closed_set_training import BaselineObjective
from benchmarks.papers.co_compress import compress
from benchmarks.papers.default_pair import WORK, inputs_of, own_network, prepared, size
from benchmarks.papers.figures import (
    RESULTS,
    Floats,
    Prepare,
    arguments,
    evaluate_faces,
    evaluate_voices,
    per_cent,
    save_results,
    table,
)
from edgeid.command import data_directory
from edgeid.converters.codebook.calibration import CodebookCalibration
from edgeid.converters.codebook.shared_codebooks import SharedCodebooks
from edgeid.converters.graphs.torch_graph import export_torch
from edgeid.converters.onnx_import.model import import_onnx
from edgeid.converters.recipe import Context
from edgeid.converters.training.checkpoint import read_checkpoint
from edgeid.runtime.errors import DataError
from edgeid.runtime.face_spec import FaceSpec, network_input
from edgeid.runtime.graph import Graph, merge_graphs

SAMPLES = 1500  # of each entry


@dataclass(frozen=True)
class FaceNetwork:
    """A face network, and how crops become its input."""

    graph: Graph
    prepare: Prepare


def mobilefacenet() -> FaceNetwork:
    """The public network; grey crops as all three channels."""
    spec = FaceSpec(channels=3, crop=(0, 0, 112, 112), mean=0.0, scale=1.0)
    path = data_directory().parent / "models" / "mobilefacenet.onnx"
    return FaceNetwork(import_onnx(path, "face"), lambda crops: network_input(crops, spec))


def vgg11(path: Path = Path("work/papers/flame/baseline-1.pt")) -> FaceNetwork:
    """The baseline of paper 003's reproduction, without its classifier."""
    if not path.is_file():
        raise DataError(f"no trained VGG11-bn at {path}: run benchmarks.papers.flame first")
    state = read_checkpoint(path)
    people = state["network"]["classify.weight"].shape[0]
    classifier = BaselineObjective(people).network
    classifier.load_state_dict(state["network"])
    graph = export_torch(classifier.network.eval(), (1, 64, 64), "face")
    return FaceNetwork(graph, _squares)


def _squares(crops: NDArray[np.uint8]) -> Floats:
    return np.asarray(closed_set_input(np.stack([look(crop) for crop in crops])).numpy())


FACES: dict[str, Callable[[], FaceNetwork]] = {"mobilefacenet": mobilefacenet, "vgg11": vgg11}
# K, r, samples of clustering, steps of calibration
SETTINGS = {"mobilefacenet": (64, 4, 256, 30), "vgg11": (64, 8, 512, 60)}


def run_pair(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Compress one pair; its figures before and after."""
    work = options.work or Path("work/papers/pairs")
    face = FACES[name]()
    pair = merge_graphs(face=face.graph, voice=own_network("voice"))
    kept = prepared(WORK / "training.npz", lambda: inputs_of(0))
    rng = np.random.default_rng(options.seed)
    count = 64 if options.quick else SAMPLES
    some = {n: rng.permutation(len(kept[n]))[:count] for n in ("face", "voice")}
    samples = {
        "face": face.prepare(kept["face"][some["face"]]),
        "voice": kept["voice"][some["voice"]],
    }
    context = Context(samples, work / name, options.seed, options.threads)
    k, r, samples_used, steps = SETTINGS[name]
    step = SharedCodebooks(
        k=k,
        r=r,
        samples=samples_used,
        calibration=CodebookCalibration(
            steps=steps, batch=32, rate=4e-3, save_every=20, bfloat16=True
        ),
    )
    if options.quick:
        step = replace(step, samples=32, rounds=1, calibration=CodebookCalibration(steps=2))
    started = time.monotonic()
    made, report = compress(pair, context, step)
    return {
        "seconds": time.monotonic() - started,
        "layers": {e: len(_weighted(pair, e)) for e in ("face", "voice")},
        "before": _figures(pair, face.prepare),
        "after": _figures(made, face.prepare),
        **report,
    }


def _weighted(graph: Graph, entry: str) -> list[str]:
    return [layer.name for layer in graph.layers_of(entry) if layer.op in ("Conv", "Gemm")]


def _figures(graph: Graph, prepare: Prepare) -> dict[str, Any]:
    return {
        "bytes": size(graph),
        "face": evaluate_faces(graph, spec=prepare),
        "voice": evaluate_voices(graph),
    }


def markdown(results: dict[str, Any]) -> str:
    """A row for each pair before and after."""
    rows = []
    for name, found in results["pairs"].items():
        for stage in ("before", "after"):
            part = found[stage]
            cosines = [found["figures"].get(f"cosine_calibrated/{e}") for e in ("face", "voice")]
            near = " / ".join(f"{c:.4f}" for c in cosines) if stage == "after" else "1"
            rows.append(
                [
                    f"{name} + CNN-20, {stage}",
                    f"{part['bytes']:,}",
                    near,
                    per_cent(part["face"]["accuracy"]),
                    per_cent(part["voice"]["all"]["eer"]),
                ]
            )
    head = ["pair", "bytes", "cosine face / voice", "LFW accuracy, %", "voice EER, all sets, %"]
    return table(head, rows)


def main() -> None:
    """Compress, measure, print, keep."""
    parser = arguments(__doc__)
    parser.add_argument("--pair", choices=[*FACES, "all"], default="all")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = [*FACES] if options.pair == "all" else [options.pair]
    suffix = "" if options.pair == "all" else f"-{options.pair}"
    out = options.out or RESULTS / f"pairs{suffix}-seed{options.seed}.json"
    results: dict[str, Any] = {"paper": "000", "seed": options.seed, "quick": options.quick}
    results["pairs"] = {}
    for name in names:
        results["pairs"][name] = run_pair(name, options)
        save_results(out, results)
    print(markdown(results))


if __name__ == "__main__":
    main()
