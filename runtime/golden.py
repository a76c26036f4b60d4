"""Golden vectors: what the network answers to known inputs, stored in the model file.

A wrong build of an inference library can run without an error and answer nonsense. So
every engine has to reproduce the vectors in the file before its answers are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.engine import Engine
from edgeid.runtime.errors import GoldenVectorError
from edgeid.runtime.format import golden_count
from edgeid.runtime.graph import Graph
from edgeid.runtime.native.engine import integer_engine

MIN_COSINE = 0.999
MAX_RELATIVE_ERROR = 0.05  # |got - expected| / |expected|; a cosine of 0.999 alone means 0.045


def golden_input(seed: int, shape: tuple[int, ...]) -> FloatArray:
    """float32 (1, *shape) of standard normal values, the same on every machine.

    The inputs of our networks are normalised to about zero mean and unit size.
    """
    return np.random.default_rng(seed).standard_normal((1, *shape)).astype(np.float32)


def make_golden(engine: Engine, graph: Graph, entry: str, seed: int) -> dict[str, Any]:
    """The golden vector of an entry, as the model file stores it: of large outputs some values.

    Raises:
        GoldenVectorError: the output is zero or not finite, so it could prove nothing.
    """
    embedding = engine.run(entry, golden_input(seed, graph.entry(entry).shape)).ravel()
    if not (np.isfinite(embedding).all() and embedding.any()):
        raise GoldenVectorError(
            f"entry {entry!r} answers zero or not finite to seed {seed}: is the network trained?"
        )
    golden = {"entry": entry, "seed": seed, "embedding": _digits(_kept(embedding))}
    if graph.scales:
        exact = integer_engine(graph).run(entry, golden_input(seed, graph.entry(entry).shape))
        golden["native"] = _digits(_kept(exact))
    return golden


def _kept(output: FloatArray) -> FloatArray:
    """The values of an output that a golden vector keeps, evenly spaced over all of it."""
    values = output.ravel()
    chosen = np.linspace(0, values.size - 1, golden_count(values.size)).astype(np.intp)
    return np.asarray(values[chosen], np.float32)


def _digits(values: FloatArray) -> list[float]:
    """Nine digits bring a float32 back exactly."""
    return [float(f"{value:.9g}") for value in values]


def check_golden(engine: Engine, graph: Graph, golden: Mapping[str, Any]) -> None:
    """Raise GoldenVectorError unless the engine reproduces one stored vector.

    The output, not normalised, must have a cosine of at least 0.999 with it and differ by
    at most 5 % of its length. The native engine has a vector of its own, which it must give
    to the bit: on noise eight bits are far from float32, and yet its arithmetic is exact.
    """
    entry, seed = str(golden["entry"]), int(golden["seed"])
    if engine.name == "native" and "native" in golden:
        exact = _kept(engine.run(entry, golden_input(seed, graph.entry(entry).shape)))
        if not np.array_equal(exact, np.asarray(golden["native"], np.float32)):
            raise GoldenVectorError(
                f"engine 'native', entry {entry!r}: not the golden vector in the model file, "
                "which it gives to the bit where it works. Choose another engine "
                "(engine='reference' needs numpy alone) or build this one again"
            )
        return
    expected = np.asarray(golden["embedding"], dtype=np.float64)
    got = _kept(engine.run(entry, golden_input(seed, graph.entry(entry).shape)))
    if got.shape != expected.shape:
        raise GoldenVectorError(
            f"engine {engine.name!r}, entry {entry!r}: {got.size} values, "
            f"the golden vector has {expected.size}"
        )
    length = float(np.linalg.norm(expected))
    product = float(np.linalg.norm(got.astype(np.float64))) * length
    cosine = float(got @ expected) / product if product > 0 else 0.0
    error = float(np.linalg.norm(got - expected)) / length if length > 0 else np.inf
    # written so that NaN fails too
    if not (cosine >= MIN_COSINE and error <= MAX_RELATIVE_ERROR):
        raise GoldenVectorError(
            f"engine {engine.name!r}, entry {entry!r}: cosine {cosine:.6f} (needs {MIN_COSINE}), "
            f"relative error {error:.4f} (at most {MAX_RELATIVE_ERROR}) against the golden "
            "vector in the model file. Its answers cannot be trusted here: choose another "
            "engine (engine='reference' needs numpy alone) or reinstall this one"
        )
