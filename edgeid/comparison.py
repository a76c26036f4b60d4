"""The accuracy of networks beside each other, on labelled inputs: what a report judges by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeid.metrics import eer_and_min_dcf, equal_error_rate
from edgeid.roc import Array, Trials
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.engine import Engine, make_engine
from edgeid.runtime.errors import DataError
from edgeid.runtime.graph import Graph

if TYPE_CHECKING:
    from edgeid.converters.report.steps import Judge, Rate

Labels = NDArray[np.int64]

MOST = 2000  # samples of an entry
BATCH = 64  # of them at once
DRAWS = 300
IMPOSTORS = 50_000  # that the interval is made of; the EER itself is of all


def make_judge(
    samples: Mapping[str, FloatArray],
    labels: Mapping[str, Labels],
    *,
    threads: int = 1,
    seed: int = 1,
) -> Judge:
    """A judge of entries by their EER over all pairs of samples.

    Two samples of one person are a genuine comparison, of two people an impostor one; the
    score is the cosine. The 95 % interval is drawn over people. All graphs are judged by the
    same comparisons.

    Args:
        samples: network inputs of each entry, float32 (N, *shape). Of more than 2,000 whole
            people are taken at random, up to about so many.
        labels: who is in each, whole numbers (N,); entries without are not judged.
        threads: of the engine.

    Raises:
        DataError: no labels, or some that do not fit or give no genuine or no impostor pair.
    """
    if not labels:
        raise DataError("accuracy needs labels: who is in each sample")
    chosen = {name: _chosen(name, samples, labels[name], seed) for name in labels}

    def judge(graph: Graph) -> Mapping[str, Rate]:
        engine = make_engine(graph, "auto", threads)
        there = {entry.name for entry in graph.entries}
        return {
            name: judge_embeddings(_embed(engine, name, x), who, seed)
            for name, (x, who) in chosen.items()
            if name in there
        }

    return judge


def _embed(engine: Engine, name: str, x: FloatArray) -> FloatArray:
    parts = [engine.run(name, x[start : start + BATCH]) for start in range(0, len(x), BATCH)]
    return np.concatenate(parts)


def _chosen(
    name: str, samples: Mapping[str, FloatArray], labels: Labels, seed: int
) -> tuple[FloatArray, Labels]:
    """The samples and labels that an entry is judged by."""
    if name not in samples:
        raise DataError(f"labels of {name!r}, but there are samples of {[*samples]}")
    inputs = samples[name]
    if labels.shape != (len(inputs),) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{name}: labels {labels.dtype} {labels.shape} do not fit {len(inputs)} samples"
        )
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2 or counts.max() < 2:
        raise DataError(
            f"{name}: {len(labels)} labelled samples of {len(counts)} people; comparisons "
            "need two people or more, and two samples of one of them"
        )
    if len(labels) <= MOST:
        return inputs, labels
    # people with one sample give no genuine pair: those with more first
    people, counts = np.unique(labels, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(people))
    order = order[np.argsort(counts[order] < 2, kind="stable")]
    size = np.cumsum(np.minimum(counts[order], MOST // 10))
    taken = people[order[: max(2, int(np.searchsorted(size, MOST, side="right")))]]
    rows = [np.flatnonzero(labels == person)[: MOST // 10] for person in taken]
    kept = np.sort(np.concatenate(rows))
    return inputs[kept], labels[kept]


def judge_embeddings(embeddings: FloatArray, labels: Labels, seed: int = 1) -> Rate:
    """EER of embeddings (N, ...) over all pairs, with its interval.

    The EER is that of all pairs. Its interval is the spread, over people drawn anew, of the
    EER of all genuine and at most 50,000 impostor pairs.

    Raises:
        DataError: embeddings that are not finite, or no pair of one of both kinds.
    """
    from edgeid.converters.report.steps import Rate

    flat = embeddings.reshape(len(embeddings), -1).astype(np.float64)
    unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-30)
    rows, columns = np.triu_indices(len(unit), 1)
    scores: Array = (unit @ unit.T)[rows, columns]
    genuine = labels[rows] == labels[columns]
    value = equal_error_rate(scores, genuine)
    kept = _some_impostors(genuine, seed)
    names = labels.astype(str)
    trials = Trials(scores[kept], genuine[kept], names[rows[kept]], names[columns[kept]])
    rate = eer_and_min_dcf(trials, draws=DRAWS, seed=seed)[0]
    # the bounds move with the value from the part to the whole
    low, high = value - (rate.value - rate.low), value + (rate.high - rate.value)
    return Rate("EER", value, max(0.0, low), min(1.0, high), len(genuine))


def _some_impostors(genuine: NDArray[np.bool_], seed: int) -> NDArray[np.intp]:
    """Indices of all genuine and at most 50,000 impostor pairs."""
    impostors = np.flatnonzero(~genuine)
    if len(impostors) > IMPOSTORS:
        rng = np.random.default_rng(seed)
        impostors = rng.choice(impostors, IMPOSTORS, replace=False, shuffle=False)
    return np.sort(np.concatenate([np.flatnonzero(genuine), impostors]))
