"""What sharing codebooks saves, against two networks that are compressed separately.

A codebook of a network's own fits it better, so separate networks of equal K and r are more
accurate and larger. The comparison that counts is at equal accuracy: both ways take the K
and r of each layer that suit them, and are compared in bytes at the same expected error of
the embeddings. Only the coded weights are counted, with codebooks and scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeid.converters.codebook.budget import Choice, allocate, cheapest
from edgeid.converters.codebook.coded_weights import Coding
from edgeid.converters.codebook.pairing import Pairing
from edgeid.converters.codebook.plan import Importance, decoded
from edgeid.converters.codebook.sensitivity import Sensitivity, coding_choices
from edgeid.converters.recipe import Context, Figures
from edgeid.runtime.graph import Graph


@dataclass(frozen=True)
class Sharing:
    """Bytes of coded weights, and expected squared errors of the unit embeddings.

    Attributes:
        shared_bytes, shared_error: codebooks shared, K and r of each pair as given.
        separate_bytes, separate_error: codebooks of each network's own, of the same K and r.
        best_error: shared, with the best K and r for ``shared_bytes``.
        equal_bytes: separate, with the best K and r, at ``best_error``; infinite where they
            do not come down to it.
    """

    shared_bytes: int
    shared_error: float
    separate_bytes: int
    separate_error: float
    best_error: float
    equal_bytes: float

    @property
    def saved(self) -> float:
        """Share of the bytes of separate networks that sharing saves at equal error; below 0
        where sharing costs."""
        return 1 - self.shared_bytes / self.equal_bytes if self.equal_bytes > 0 else 0.0

    def line(self) -> str:
        """For people."""
        equal = (
            f"{self.equal_bytes:,.0f} bytes for separate codebooks of equal expected error: "
            f"sharing saves {self.saved:.1%}"
            if math.isfinite(self.equal_bytes)
            else "separate codebooks do not come down to this error"
        )
        return (
            f"coded weights {self.shared_bytes:,} bytes, {self.separate_bytes:,} with codebooks "
            f"of each network's own (expected error {self.shared_error:.4f} against "
            f"{self.separate_error:.4f}); {equal}"
        )

    def figures(self) -> Figures:
        """For the report."""
        found: Figures = {
            "sharing/shared_bytes": self.shared_bytes,
            "sharing/shared_error": self.shared_error,
            "sharing/separate_bytes": self.separate_bytes,
            "sharing/separate_error": self.separate_error,
        }
        if math.isfinite(self.equal_bytes):
            found["sharing/equal_error_bytes"] = round(self.equal_bytes)
            found["sharing/saved"] = self.saved
        return found


def measure_sharing(
    graph: Graph,
    pairing: Pairing,
    codings: Sequence[Coding],
    importance: Importance,
    sensitivity: Sensitivity,
    context: Context,
) -> Sharing:
    """Compare shared codebooks with separate ones; arguments as in ``choose_codings``."""
    alone: list[tuple[Choice, ...]] = []
    apart: list[Coding] = []
    steps = list(zip(pairing.pairs, codings, sensitivity.choices, sensitivity.factors, strict=True))
    for pair, coding, choices, factor in context.track(steps, "separate codebooks"):
        apart += [coding] * len(pair.tensors)
        if len(pair.tensors) == 1:
            alone.append(choices)
            continue
        weights = decoded(graph, pair.tensors)
        for name, weight in weights.items():
            cost = {name: importance.of(name)}
            alone.append(coding_choices({name: weight}, cost, factor, context.seed))
    shared = [_of(options, c) for options, c in zip(sensitivity.choices, codings, strict=True)]
    separate = [_of(options, c) for options, c in zip(alone, apart, strict=True)]
    size = sum(choice.nbytes for choice in shared)
    best = sum(choice.error for choice in allocate(sensitivity.choices, size))
    best = min(best, sum(choice.error for choice in shared))
    return Sharing(
        shared_bytes=size,
        shared_error=sum(choice.error for choice in shared),
        separate_bytes=sum(choice.nbytes for choice in separate),
        separate_error=sum(choice.error for choice in separate),
        best_error=best,
        equal_bytes=cheapest(alone, best),
    )


def _of(options: Sequence[Choice], coding: Coding) -> Choice:
    return next(choice for choice in options if choice.coding == coding)
