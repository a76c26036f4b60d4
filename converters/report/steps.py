"""Every step of a recipe measured the same way: size, accuracy, work, latency, likeness."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from tqdm import tqdm

from edgeid.converters.recipe_progress import PassReport
from edgeid.converters.report.codebook_use import CodebookUse, codebook_use
from edgeid.converters.report.costs import LayerCost, Size, layer_costs, measure_size
from edgeid.converters.report.latency import Latency, measure_latency
from edgeid.converters.report.layer_sensitivity import LayerSensitivity, layer_sensitivity
from edgeid.converters.report.similarity import Embeddings, Similarity, compare, embed
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.engine import Engine, make_engine, thread_count
from edgeid.runtime.errors import DataError
from edgeid.runtime.graph import Graph

MOST_SAMPLES = 200  # of each entry


@dataclass(frozen=True)
class Step:
    """A state of the model: the originals first, then what each pass made.

    Attributes:
        name: "original", "1 codebook" ...
        report: of the pass; None for the originals.
    """

    name: str
    graph: Graph
    report: PassReport | None = None


@dataclass(frozen=True)
class Rate:
    """An accuracy figure with its 95 % interval.

    Attributes:
        name: "EER", "accuracy" ...
        value, low, high: fractions, low <= value <= high.
        trials: that it is made of.
        lower_is_better: so with error rates.
    """

    name: str
    value: float
    low: float
    high: float
    trials: int
    lower_is_better: bool = True


Judge = Callable[[Graph], Mapping[str, Rate]]
"""The accuracy of a graph's entries, as far as there are labels for them."""


@dataclass(frozen=True)
class MeasuredStep:
    """The figures of one step; all but ``size`` by entry.

    Attributes:
        report: of the pass; None for the originals.
        costs: multiply-adds and bytes of every weighted layer.
        rates: empty without a judge; entries that it has no labels for are missing.
        similarity: to the originals; entries without samples are missing.
    """

    name: str
    report: PassReport | None
    size: Size
    costs: dict[str, tuple[LayerCost, ...]]
    latency: dict[str, Latency]
    rates: dict[str, Rate]
    similarity: dict[str, Similarity]

    def multiply_adds(self, entry: str) -> int:
        """Of one input, over all layers of the entry."""
        return sum(layer.multiply_adds for layer in self.costs[entry])


@dataclass(frozen=True)
class Measured:
    """A recipe in figures.

    Attributes:
        entries: the networks.
        steps: the originals, then the result of each pass.
        sensitivity: by entry, what the last step's weights of each layer alone would cost.
        codebooks: of the last step.
        samples: how many inputs of each entry the similarities are made of.
        engine, threads, machine: what the latencies hold for.
    """

    entries: tuple[str, ...]
    steps: tuple[MeasuredStep, ...]
    sensitivity: dict[str, tuple[LayerSensitivity, ...]]
    codebooks: tuple[CodebookUse, ...]
    samples: dict[str, int]
    engine: str
    threads: int
    machine: str

    def to_dict(self) -> dict[str, object]:
        """All figures, with Python's own types but perhaps NaN among the floats."""
        return {
            "entries": list(self.entries),
            "engine": self.engine,
            "threads": self.threads,
            "machine": self.machine,
            "samples": self.samples,
            "steps": [_step_dict(step) for step in self.steps],
            "sensitivity": {
                entry: [asdict(layer) for layer in layers]
                for entry, layers in self.sensitivity.items()
            },
            "codebooks": [asdict(use) for use in self.codebooks],
        }


def _step_dict(step: MeasuredStep) -> dict[str, object]:
    return {
        "name": step.name,
        "pass": step.report.to_dict() if step.report else None,
        "size": asdict(step.size),
        "entries": {
            entry: {
                "multiply_adds": step.multiply_adds(entry),
                "latency": asdict(step.latency[entry]),
                "rate": asdict(step.rates[entry]) if entry in step.rates else None,
                "similarity": (
                    step.similarity[entry].to_dict() if entry in step.similarity else None
                ),
                "layers": [asdict(layer) for layer in layers],
            }
            for entry, layers in step.costs.items()
        },
    }


def measure_steps(
    steps: Sequence[Step],
    samples: Mapping[str, FloatArray],
    judge: Judge | None,
    *,
    threads: int = 1,
    progress: bool = True,
) -> Measured:
    """Measure the originals and what each pass made of them.

    Latencies are of one input at a time, the steps taken in turns, so that whatever else the
    machine does falls on all of them alike.

    Args:
        steps: the originals first; all with the same entries.
        samples: inputs of each entry, float32 (N, *shape); entries may be missing. A few
            hundred are used, evenly spread.
        judge: gives the accuracies; None where there are no labels.
        threads: of one inference.
        progress: show a bar.

    Raises:
        DataError: no steps, steps whose entries differ, or samples that fit no entry.
        GraphError, EngineError: a graph cannot be run, or gives NaN or infinity.
    """
    entries = _entries(steps)
    chosen = _chosen(samples, entries)
    with tqdm(total=4 * len(steps) + 2, desc="report", disable=not progress) as bar:
        engines: list[Engine] = []
        embedded: list[Embeddings] = []
        rates: list[dict[str, Rate]] = []
        for step in steps:
            engines.append(make_engine(step.graph, "auto", threads))
            bar.update()
            embedded.append(embed(engines[-1], chosen, step.name))
            bar.update()
            rates.append(dict(judge(step.graph)) if judge is not None else {})
            bar.update()
        latency = measure_latency(engines, {e: _one(steps[0].graph, e, chosen) for e in entries})
        bar.update(len(steps))
        sensitivity = layer_sensitivity(steps[0].graph, steps[-1].graph, chosen)
        bar.update()
        codebooks = codebook_use(steps[-1].graph)
        bar.update()
    similar = [{e: compare(y, own[e]) for e, y in embedded[0].items()} for own in embedded]
    measured = tuple(
        _measured(step, {e: latency[e][i] for e in entries}, rates[i], similar[i])
        for i, step in enumerate(steps)
    )
    return Measured(
        entries=entries,
        steps=measured,
        sensitivity=sensitivity,
        codebooks=codebooks,
        samples={name: len(x) for name, x in chosen.items()},
        engine=", then ".join(dict.fromkeys(engine.name for engine in engines)),
        threads=thread_count(threads),
        machine=f"{platform.system()} {platform.machine()}",
    )


def _chosen(samples: Mapping[str, FloatArray], entries: tuple[str, ...]) -> dict[str, FloatArray]:
    """Some samples of each entry; raises DataError where there are none, or no such entry."""
    chosen = {name: _spread(x) for name, x in samples.items()}
    for name, x in chosen.items():
        if name not in entries or not len(x):
            raise DataError(f"{len(x)} samples of {name!r}; the entries are {entries}")
    return chosen


def _measured(
    step: Step,
    latency: dict[str, Latency],
    rates: Mapping[str, Rate],
    similarity: dict[str, Similarity],
) -> MeasuredStep:
    return MeasuredStep(
        name=step.name,
        report=step.report,
        size=measure_size(step.graph),
        costs={entry: layer_costs(step.graph, entry) for entry in latency},
        latency=latency,
        rates={entry: rate for entry, rate in rates.items() if entry in latency},
        similarity=similarity,
    )


def _entries(steps: Sequence[Step]) -> tuple[str, ...]:
    if not steps:
        raise DataError("a report needs the originals and the result of one pass or more")
    shapes = [{e.name: e.shape for e in step.graph.entries} for step in steps]
    for step, found in zip(steps, shapes, strict=True):
        if found != shapes[0]:
            raise DataError(f"step {step.name!r} has the entries {found}, the first {shapes[0]}")
    return tuple(shapes[0])


def _spread(x: FloatArray) -> FloatArray:
    """At most 200 samples, evenly spread: neighbours are often of one person."""
    if len(x) <= MOST_SAMPLES:
        return x
    spread: FloatArray = x[np.linspace(0, len(x) - 1, MOST_SAMPLES).astype(int)]
    return spread


def _one(graph: Graph, entry: str, samples: Mapping[str, FloatArray]) -> FloatArray:
    """(1, *shape): a sample, or noise where there is none."""
    if entry in samples:
        return samples[entry][:1]
    shape = (1, *graph.entry(entry).shape)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
