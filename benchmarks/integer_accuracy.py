"""What computing in eight bits costs: development figures of one model file, in float32
(onnxruntime), and by the native engine (uint8 activations, int8 weights or tables of eight bits).

    python -m benchmarks.integer_accuracy model.edgeid [--out FILE]

A file without activation scales gets them first, from training people.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.papers.default_pair import WORK, training_inputs
from benchmarks.papers.figures import evaluate_faces, evaluate_voices, per_cent, save_results, table
from edgeid.converters.quantisation.activations import ActivationScales
from edgeid.converters.recipe import Context
from edgeid.runtime.format import read_model
from edgeid.runtime.graph import Graph
from edgeid.runtime.native import program as p
from edgeid.runtime.native.planner import plan

ENGINES = ("onnxruntime", "native")
SAMPLES = 256


def scaled(graph: Graph) -> Graph:
    """The graph with activation scales for faces and voices."""
    if graph.scales and graph.table_scales:
        return graph
    context = Context(training_inputs(WORK, 0, SAMPLES), Path(), 0, 1)
    result = ActivationScales(entries=("face", "voice")).call(graph, context)
    print("\n".join(result.lines))
    return result.graph


def looked_up(graph: Graph, entry: str) -> str:
    """How many of an entry's convolutions are computed by look-up."""
    steps = [s for s in plan(graph, entry).steps if isinstance(s, p.Convolution)]
    count = sum(isinstance(s.weights, p.LookupWeights) for s in steps)
    return f"{count} of {len(steps)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    graph = scaled(read_model(options.model).graph)
    results: dict[str, Any] = {"model": options.model.name}
    rows = []
    for engine in ENGINES:
        faces = evaluate_faces(graph, engine_name=engine)
        voices = evaluate_voices(graph, engine_name=engine)
        results[engine] = {"faces": faces, "voices": voices}
        eers = [100 * voices[s]["eer"]["value"] for s in ("speechocean", "audiomnist", "ravdess")]
        rows.append(
            [engine, per_cent(faces["accuracy"]), f"{100 * faces['eer']['value']:.2f}"]
            + [f"{eer:.2f}" for eer in eers]
        )
    for entry in ("face", "voice"):
        results[f"{entry} by look-up"] = looked_up(graph, entry)
        print(f"{entry}: {looked_up(graph, entry)} convolutions by look-up")
    head = ["engine", "LFW %", "LFW EER", "speechocean EER", "audiomnist EER", "ravdess EER"]
    print(table(head, rows))
    if options.out:
        save_results(options.out, results)


if __name__ == "__main__":
    main()
