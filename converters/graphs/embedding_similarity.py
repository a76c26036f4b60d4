"""How near the embeddings of a changed network are to those of the original."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import GraphError
from edgeid.runtime.graph import Graph

SAMPLES = 32


def embed_samples(
    graph: Graph, samples: Mapping[str, FloatArray], threads: int = 1
) -> dict[str, FloatArray]:
    """Embeddings of the first samples of each entry, at most 32.

    Raises:
        GraphError: an embedding is NaN or infinite.
        EngineError: the engine does not take the graph.
    """
    if not samples:
        return {}
    engine = make_engine(graph, "auto", threads)
    found = {}
    for name, x in samples.items():
        found[name] = y = engine.run(name, x[:SAMPLES])
        if not np.isfinite(y).all():
            raise GraphError(f"entry {name!r} gives NaN or infinity on the samples")
    return found


def similarity(
    before: Mapping[str, FloatArray], after: Mapping[str, FloatArray]
) -> dict[str, float]:
    """Mean cosine between embeddings (N, d) of equal samples, for each entry.

    Entries whose embeddings have another dimension now are left out.
    """
    found = {}
    for name in before:
        a, b = (x[name].reshape(len(x[name]), -1).astype(np.float64) for x in (before, after))
        if a.shape == b.shape:
            lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            cosines = (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
            found[name] = round(float(np.mean(cosines)), 6)
    return found
