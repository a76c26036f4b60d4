"""Paper 004, "Merging Well-Trained Deep CNN Models for Efficient Inference" (ZipperNet).

Reproduced is section IV-B: a face and a speaker network of one architecture (CNN-20) merged
in 12 blocks, one round of calibration a block, and the naive baseline beside it.

    python -m benchmarks.papers.zipper [--seed N] [--variant NAME]
    python -m benchmarks.papers.zipper --summary      # table and plot of all runs so far

Data: calibration on training people of ``faces/train.zip`` and ``speech/train_*.zip``, figures
on LFW folds 4 and 5 and on the development speakers. All settings were chosen on calibration
people. It needs the trained originals, ``--face`` and ``--voice``.

What differs from the paper:
- half the width of CNN-20, one grey channel, small data; VoxForge and VGGFace2 are not here;
- calibration regresses the originals' embeddings instead of classifying: no labels are used;
- norms, slopes and biases stay with each task (the paper does not say);
- both readings of the filters' distance, no alignment at all, and the naive baseline with as
  many training steps at each number of blocks;
- "outputs" is an addition, and the default: the shared weight is the one that answers most like
  both layers (``converters.zipper.output_sharing``) in place of the mean, and of as many training
  steps in all, two thirds come after the last block;
- "further" is another: twelve more epochs after the twelfth block, for the zipper of means and,
  as "naive-further", for the baseline.

What was found: with the paper's mean and schedule less than 3 points are lost at 12 blocks, but
the naive baseline loses less. Alignment finds little to align: after it the mean cosine of paired
filters is 0.52 in the first layer and below 0.16 in all others, so the mean of two filters keeps
about half of each. By outputs, with no training at all, calibration faces keep a cosine of 0.97 to
the original's embedding after the first block and 0.90 after the fourth, voices 0.998 and 0.99;
of as many training steps as the naive way has, half is lost in the mean: voices lose a quarter
of what they lose there, faces half a point more. The naive way for twice the steps ends lower
still.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.papers.figures import (
    RESULTS,
    arguments,
    evaluate_faces,
    evaluate_voices,
    save_results,
)
from benchmarks.papers.zipper_samples import Samples, read_samples
from benchmarks.papers.zipper_table import summarise
from edgeid.converters.graphs.weight_calibration import Task
from edgeid.converters.network_files import load_graph
from edgeid.converters.recipe_progress import graph_key
from edgeid.converters.zipper.model_sequence import MergedModel, ModelSequence
from edgeid.converters.zipper.naive_sharing import NaiveSharing, share_naively
from edgeid.converters.zipper.shared_training import calibrate_further
from edgeid.converters.zipper.zipper import Zipper, merge_sequence
from edgeid.runtime.engine import make_engine
from edgeid.runtime.graph import Conv, Gemm, Graph, merge_graphs
from edgeid.runtime.replacement import replace_file

# An epoch is 48 steps of 32: 10 % of the 15,141 training crops (of which there are 20,000 views).
OPTIONS = Zipper(merging="mean", rate=1e-3, fraction=0.077, batch=32, settle=8, bfloat16=True)
# As many steps in all: a third of an epoch for each block, the rest after the twelfth.
OUTPUTS = replace(
    OPTIONS, merging="outputs", rate=3e-4, fraction=0.077 / 3, finish=24, finish_rate=1e-3
)
VARIANTS = {
    "outputs": OUTPUTS,
    "filter": OPTIONS,
    "score": replace(OPTIONS, distance="score"),
    "unaligned": replace(OPTIONS, distance=None),
    "naive": OPTIONS,
    "further": OPTIONS,  # the last model of "filter", calibrated further
    "naive-further": OPTIONS,  # the same of "naive"
}
FURTHER_EPOCHS = 12
NAIVE_BLOCKS = (12, 8, 4)  # the first is what the comparison needs most


def main() -> None:
    """One run, or the summary of all."""
    parser = arguments(__doc__)
    parser.add_argument("--variant", choices=VARIANTS, default="outputs")
    parser.add_argument("--face", type=Path, default=Path("work/face2.pt"))
    parser.add_argument("--voice", type=Path, default=Path("work/voice2.pt"))
    parser.add_argument("--summary", action="store_true", help="table and plot of all results")
    parser.add_argument("--blocks", type=int, nargs="*", help="evaluate these only")
    chosen = parser.parse_args()
    if chosen.summary:
        print(summarise(RESULTS))
        return
    torch.set_num_threads(chosen.threads)
    work = chosen.work or Path("work/papers/zipper")
    name = "zipper" if chosen.variant == "filter" else f"zipper-{chosen.variant}"
    out = chosen.out or RESULTS / f"{name}-seed{chosen.seed}.json"
    graph = merge_graphs(
        face=load_graph(chosen.face, "face"), voice=load_graph(chosen.voice, "voice")
    )
    samples = read_samples(graph, work)
    options = VARIANTS[chosen.variant]
    if chosen.quick:
        options = replace(options, fraction=0.003, settle=1)
        out = work / "quick" / out.name
    folder = work / ("quick" if chosen.quick else "") / f"{chosen.variant}-seed{chosen.seed}"
    sequences = {
        "naive": naive_sequence,
        "further": further_sequence,
        "naive-further": naive_further_sequence,
    }
    sequence = sequences.get(chosen.variant, zipper_sequence)
    models = sequence(graph, samples, options, folder, chosen.seed)
    results: dict[str, Any] = {
        "paper": "004",
        "variant": chosen.variant,
        "seed": chosen.seed,
        "options": options.to_dict(),
        "models": [],
    }
    started = time.monotonic()
    for model in models:
        seconds = time.monotonic() - started
        evaluated = chosen.blocks is None or model.blocks in chosen.blocks
        results["models"].append(measured(model, samples, seconds, evaluated))
        save_results(out, results)
        print(model.line(), flush=True)
        started = time.monotonic()
    print(summarise(out.parent))


def tasks_of(samples: tuple[Samples, ...], options: Zipper) -> tuple[Task, ...]:
    """Both networks' tasks; an epoch is a part of the samples."""
    return tuple(one.task(options.batch, options.fraction) for one in samples)


def zipper_sequence(
    graph: Graph, samples: tuple[Samples, ...], options: Zipper, folder: Path, seed: int
) -> Iterator[MergedModel]:
    """The models with 0 to 12 merged blocks; those in ``folder`` are read back."""
    yield from merge_sequence(graph, tasks_of(samples, options), options, folder, seed)


def naive_sequence(
    graph: Graph, samples: tuple[Samples, ...], options: Zipper, folder: Path, seed: int
) -> Iterator[MergedModel]:
    """The naive baseline for several numbers of blocks, each trained as long as the zipper's
    rounds up to there together; those in ``folder`` are read back."""
    sequence = ModelSequence(
        folder, f"naive {graph_key(graph, {}, seed)} {json.dumps(options.to_dict())}"
    )
    yield sequence.read(0) or sequence.keep(0, graph, {})
    for blocks in NAIVE_BLOCKS:
        found = sequence.read(blocks)
        if found is None:
            naive = NaiveSharing(replace(options, blocks=blocks))
            merged, loss = share_naively(graph, tasks_of(samples, options), naive, seed)
            figures: dict[str, float | int | str] = {f"loss/{k}": v for k, v in loss.items()}
            found = sequence.keep(blocks, merged, figures)
        yield found


def further_sequence(
    graph: Graph, samples: tuple[Samples, ...], options: Zipper, folder: Path, seed: int
) -> Iterator[MergedModel]:
    """The zipper's last model after as many epochs again as its rounds had."""
    rounds = folder.with_name(f"filter-seed{seed}")
    *_, last = zipper_sequence(graph, samples, options, rounds, seed)
    yield calibrated_further(last, samples, options, folder, seed)


def naive_further_sequence(
    graph: Graph, samples: tuple[Samples, ...], options: Zipper, folder: Path, seed: int
) -> Iterator[MergedModel]:
    """The naive model of all blocks after as many epochs more as the zipper's last has."""
    models = naive_sequence(graph, samples, options, folder.with_name(f"naive-seed{seed}"), seed)
    last = next(model for model in models if model.blocks == NAIVE_BLOCKS[0])
    yield calibrated_further(last, samples, options, folder, seed)


def calibrated_further(
    last: MergedModel, samples: tuple[Samples, ...], options: Zipper, folder: Path, seed: int
) -> MergedModel:
    """A merged model after ``FURTHER_EPOCHS`` more; read back where it is done."""
    key = f"further {graph_key(last.graph, {}, seed)} {json.dumps(options.to_dict())}"
    sequence = ModelSequence(folder, key)
    found = sequence.read(last.blocks)
    if found is not None:
        return found
    tasks = tasks_of(samples, options)
    more = calibrate_further(last.graph, tasks, options, FURTHER_EPOCHS, seed)
    return sequence.keep(last.blocks, *more)


def measured(
    model: MergedModel, samples: tuple[Samples, ...], seconds: float, evaluated: bool
) -> dict[str, Any]:
    """All figures of a model, which took ``seconds`` to make; kept beside its file."""
    path = model.path.with_suffix(".json")
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if known.get("model") != model.path.stat().st_mtime_ns:
        known = {"model": model.path.stat().st_mtime_ns}
    if "blocks" not in known:
        known |= {
            "blocks": model.blocks,
            "weights": model.weights,
            "bytes": model.size,
            "macs": {one.entry: multiply_adds(model.graph, one.entry) for one in samples},
            "round": model.figures,
            "seconds": round(seconds, 1),
        }
    if evaluated and "face" not in known:
        known |= {
            "calibration": {one.entry: one.judge(model.graph) for one in samples},
            "face": evaluate_faces(model.graph),
            "voice": evaluate_voices(model.graph),
        }
    if evaluated and "cpu_milliseconds" not in known:
        known["cpu_milliseconds"] = latency(model.graph)
    replace_file(path, (json.dumps(known, indent=1) + "\n").encode())
    return known


def multiply_adds(graph: Graph, entry: str) -> int:
    """Of the convolutions and fully connected layers of an entry, for one input."""
    shapes, total = graph.infer_shapes(entry), 0
    for layer in graph.layers_of(entry):
        if isinstance(layer, Conv | Gemm):
            positions = int(np.prod(shapes[layer.output][1:]))
            total += int(np.prod(graph.tensors[layer.weight].shape)) * positions
    return total


def latency(graph: Graph, times: int = 30) -> dict[str, float]:
    """Median milliseconds that one input takes a core, through onnxruntime on one thread.

    Time of the process, not of the clock: other processes do not count.
    """
    engine = make_engine(graph, "onnxruntime", 1)
    found = {}
    for entry in graph.entries:
        x = np.zeros((1, *entry.shape), np.float32)
        taken = []
        for _ in range(times):
            started = time.process_time()
            engine.run(entry.name, x)
            taken.append(1000 * (time.process_time() - started))
        found[entry.name] = float(np.median(taken))
    return found


if __name__ == "__main__":
    main()
