"""How cost grows: with images, seconds of audio, threads, and the width of the networks.

    python -m benchmarks.growth [--engines native onnxruntime] [--rounds 5] [--work work/engines]
        [--out benchmarks/results/growth.json] [--plot benchmarks/results/growth.png]

On untrained CNN-20 pairs (``networks.py``) of full width, and for the last question of a quarter,
a half and three quarters of it. Points are measured in turns, each warmed up and then run for a
twentieth of a second or more a round; a point is the fastest run. Audio goes from samples to an
embedding: log-mel windows of 1.7 s, half overlapping, at most 24 of them. The other engines run
as EdgeID runs them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import machine
from edgeid.runtime.engine import Engine, make_engine
from edgeid.runtime.errors import EngineError
from edgeid.runtime.format import read_model
from edgeid.runtime.voice import VoiceSpec, read_voice

IMAGES = (1, 2, 4, 8, 16, 32)
SECONDS = (1, 2, 3, 5, 10, 20, 30, 60)
THREADS = (1, 2, 3, 4)
WIDTHS = (0.25, 0.5, 0.75, 1.0)
RATE = 16000
BURST = 0.05  # seconds
COLOURS = {"native": "#0072B2", "onnxruntime": "#D55E00", "litert": "#009E73"}
STYLES = {"native": "o-", "onnxruntime": "s--", "litert": "^:"}


@dataclass(frozen=True)
class Point:
    """One measurement: what is varied, to what, by which engine; ``run`` does it once."""

    question: str
    engine: str
    value: float
    run: Callable[[], object]


def folder(work: Path, width: float) -> Path:
    """Where the pair of that width is."""
    return work / f"cnn20-{width:g}"


def points(name: str, work: Path) -> Iterator[Point]:
    """All that is measured of one engine; raises EngineError where it is not there."""
    graph = read_model(folder(work, 1.0) / "model.edgeid").graph
    engine = make_engine(graph, name, 1)
    face = np.load(folder(work, 1.0) / "inputs.npz")["face"]
    for count in IMAGES:
        yield Point("images", name, count, partial(engine.run, "face", face.repeat(count, axis=0)))
    noise = np.random.default_rng(1).standard_normal(RATE * max(SECONDS)).astype(np.float32)
    for seconds in SECONDS:
        yield Point("audio", name, seconds, partial(embed_voice, engine, noise[: RATE * seconds]))
    for threads in THREADS:
        several = make_engine(graph, name, threads)
        yield Point("threads", name, threads, partial(several.run, "face", face))
    for width in WIDTHS:
        narrow = make_engine(read_model(folder(work, width) / "model.edgeid").graph, name, 1)
        yield Point("width", name, width, partial(narrow.run, "face", face))


def embed_voice(engine: Engine, samples: np.ndarray[Any, np.dtype[np.float32]]) -> object:
    """From samples to the mean embedding, as ``Model.embed_voice`` goes."""
    windows = read_voice((samples * 0.1, RATE), None, VoiceSpec(), checks=False).windows
    return engine.run("voice", windows).mean(axis=0)


def measure(every: list[Point], rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of every point: the fastest run, and the fastest of each round."""
    times: list[list[float]] = [[] for _ in every]
    for _ in range(rounds):
        for point, found in zip(every, times, strict=True):
            found.append(1e3 * fastest(point))
    return [
        {"question": p.question, "engine": p.engine, "value": p.value, "ms": min(t), "rounds": t}
        for p, t in zip(every, times, strict=True)
    ]


def fastest(point: Point) -> float:
    """Seconds of the fastest of several runs, after one that warms."""
    point.run()
    found: list[float] = []
    until = time.perf_counter() + BURST
    while not found or time.perf_counter() < until:
        start = time.perf_counter()
        point.run()
        found.append(time.perf_counter() - start)
    return min(found)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Four panels: images, audio, threads, width."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    labels = {
        "images": "face images in one call",
        "audio": "seconds of audio, samples to embedding",
        "threads": "threads, one face",
        "width": "width of the network, one face",
    }
    for place, (question, label) in enumerate(labels.items()):
        axes = figure.add_subplot(2, 2, place + 1)
        for name in dict.fromkeys(row["engine"] for row in rows):
            own = [row for row in rows if (row["engine"], row["question"]) == (name, question)]
            x, y = [row["value"] for row in own], [row["ms"] for row in own]
            axes.plot(x, y, STYLES.get(name, "x-"), color=COLOURS.get(name, "#555555"), label=name)
        axes.set_xlabel(label)
        axes.set_ylabel("milliseconds")
        if question in ("images", "audio"):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            values = IMAGES if question == "images" else SECONDS
            axes.set_xticks(values, [str(value) for value in values])
        else:
            axes.set_ylim(bottom=0)
            axes.set_xticks(THREADS if question == "threads" else WIDTHS)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(f"CNN-20, 112x96, 22.7 M weights at width 1; {machine()['processor']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Build what is missing, measure, print, keep, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", nargs="+", default=["native", "onnxruntime", "litert"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("work/engines"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/growth.json"))
    parser.add_argument("--plot", type=Path, default=Path("benchmarks/results/growth.png"))
    options = parser.parse_args()
    if not all((folder(options.work, width) / "inputs.npz").is_file() for width in WIDTHS):
        from benchmarks.networks import build

        build(options.work, Path(), Path(), [folder(options.work, w).name for w in WIDTHS])
    every: list[Point] = []
    for name in options.engines:
        try:
            every += points(name, options.work)
        except EngineError as error:
            print(f"absent: {name}: {error}")
    rows = measure(every, options.rounds)
    for row in rows:
        print(f"{row['question']:8} {row['engine']:12} {row['value']:6g} {row['ms']:9.2f} ms")
    record = {"machine": machine() | {"load": os.getloadavg()[0]}, "points": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    plot(rows, options.plot)


if __name__ == "__main__":
    main()
