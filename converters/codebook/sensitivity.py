"""How far the embeddings move when one pair alone is coded, and the codings that follow.

Clustering errors, weighted by importance, are expected errors of the embedding, but under
the assumption that a layer's inputs are uncorrelated. So one coding of each pair is tried in
the network, and the expectations of its other codings are corrected by what was found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from edgeid.converters.codebook.budget import (
    Choice,
    allocate,
    expected_error,
    rest_bytes,
)
from edgeid.converters.codebook.coded_weights import CODINGS, Coding, cluster
from edgeid.converters.codebook.pairing import Pair, Pairing
from edgeid.converters.codebook.plan import Importance, Weights, decoded, unit_embeddings
from edgeid.converters.recipe import Context
from edgeid.runtime.errors import DataError
from edgeid.runtime.graph import Graph
from edgeid.runtime.replacement import replace_file

REFERENCE = Coding(64, 8)
TRIALS = 32  # samples of each entry
KEPT = "sensitivity.json"


@dataclass(frozen=True)
class Sensitivity:
    """What coding each pair costs.

    Attributes:
        codings: chosen for each pair.
        apart: for each pair the codings of its weights where they do not share; else empty.
        choices: for each pair all that it could take.
        measured: for each pair the squared error of the unit embeddings, summed over the
            entries, with this pair alone coded at K = 64, r = 8.
        factors: what was measured over what was expected; the errors of the choices are
            multiplied by it.
    """

    codings: tuple[Coding, ...]
    choices: tuple[tuple[Choice, ...], ...]
    measured: tuple[float, ...]
    factors: tuple[float, ...]
    apart: tuple[tuple[Coding, ...], ...] = ()

    def divided(self, pairing: Pairing) -> tuple[Pairing, Sensitivity]:
        """With the weights that do not share as pairs of their own."""
        rows = []
        for number, pair in enumerate(pairing.pairs):
            own = self.apart[number] if self.apart else ()
            pairs = (
                [Pair((t,), (r,)) for t, r in zip(pair.tensors, pair.readers, strict=True)]
                if own
                else [pair]
            )
            codings = own or (self.codings[number],)
            rest = (self.choices[number], self.measured[number], self.factors[number])
            rows += [(p, c, *rest) for p, c in zip(pairs, codings, strict=True)]
        divided, codings, choices, measured, factors = zip(*rows, strict=True)
        return replace(pairing, pairs=divided), Sensitivity(codings, choices, measured, factors)


def choose_codings(
    graph: Graph,
    stored: Graph,
    pairing: Pairing,
    importance: Importance,
    context: Context,
    *,
    budget: int,
    fixed: Mapping[int, Coding],
    apart: bool = False,
    shortest: Mapping[str, int],
    largest: int = 256,
) -> Sensitivity:
    """K and r of every pair: the least expected error within ``budget`` bytes of file.

    Args:
        graph: in float.
        stored: the same, with everything but the coded weights as it will be stored.
        pairing: what is coded.
        importance: of its weights.
        context: its samples measure the sensitivity.
        budget: bytes of the model file.
        fixed: codings, by number of the pair, that are not to be chosen.
        apart: weights of a pair may have codebooks of their own, see ``Choice``.
        shortest: r that may be chosen, at least, for each entry, and for weights otherwise.
        largest: K that may be chosen, at most.

    Raises:
        DataError: the budget cannot be met; it says what is needed.
    """
    left = check_budget(stored, pairing, budget, fixed)
    found = measure(graph, pairing, importance, context, apart)
    choices = [
        [c for c in options if (c.coding, c.apart) == (fixed[number], ())]
        if number in fixed
        else [c for c in options if _eligible(c, _least_lengths(pair, shortest), largest)]
        for number, (pair, options) in enumerate(zip(pairing.pairs, found.choices, strict=True))
    ]
    chosen = allocate(choices, left)
    codings, own = tuple(c.coding for c in chosen), tuple(c.apart for c in chosen)
    return replace(found, codings=codings, apart=own)


def _least_lengths(pair: Pair, shortest: Mapping[str, int]) -> list[int]:
    """The least r of each weight: its own, or what the entries that read it ask for."""
    return [
        shortest.get(weight, max(shortest[entry] for entry, _ in readers))
        for weight, readers in zip(pair.tensors, pair.readers, strict=True)
    ]


def _eligible(choice: Choice, lengths: Sequence[int], largest: int) -> bool:
    each = choice.apart or (choice.coding,) * len(lengths)
    long_enough = all(c.r >= least for c, least in zip(each, lengths, strict=True))
    return long_enough and max(c.k for c in each) <= largest


def measure(
    graph: Graph,
    pairing: Pairing,
    importance: Importance,
    context: Context,
    apart: bool = False,
) -> Sensitivity:
    """The choices of every pair, with expected errors; the reference coding is chosen.

    Pairs that an earlier run has kept in ``context.work`` are read from there.
    """
    found = _read(context.work / KEPT)
    if len(found.choices) == len(pairing.pairs):
        return found
    inputs = {
        e: torch.from_numpy(context.inputs(e)[:TRIALS])
        for e in sorted({e for p in pairing.pairs for readers in p.readers for e, _ in readers})
    }
    targets = {entry: unit_embeddings(graph, entry, x) for entry, x in inputs.items()}
    left = pairing.pairs[len(found.choices) :]
    for pair in context.track(left, "sensitivity", len(left)):
        weights = decoded(graph, pair.tensors)
        costs = {name: importance.of(name) for name in weights}
        coded = cluster(weights, costs, REFERENCE, seed=context.seed, iterations=10)
        trial = {name: coded.decode(name) for name in weights}
        error = _moved(graph, pair, trial, inputs, targets)
        factor = min(10.0, max(0.1, error / max(coded.error, 1e-30)))
        found = Sensitivity(
            (*found.codings, REFERENCE),
            (*found.choices, _choices(weights, costs, factor, context.seed, apart)),
            (*found.measured, error),
            (*found.factors, factor),
        )
        _keep(context.work / KEPT, found)
    return found


def _choices(
    weights: Weights, costs: Mapping[str, Tensor], factor: float, seed: int, apart: bool
) -> tuple[Choice, ...]:
    shared = coding_choices(weights, costs, factor, seed)
    if not apart or len(weights) == 1:
        return shared
    alone = [coding_choices({n: w}, {n: costs[n]}, factor, seed) for n, w in weights.items()]
    both = (
        Choice(a.coding, a.nbytes + b.nbytes, a.error + b.error, (a.coding, b.coding))
        for a, b in product(*alone)
    )
    return (*shared, *both)


def coding_choices(
    weights: Weights, costs: Mapping[str, Tensor], factor: float, seed: int
) -> tuple[Choice, ...]:
    """Every coding of weights that share their codebooks, with its expected error."""
    shapes = [tuple(w.shape) for w in weights.values()]
    errors = [factor * expected_error(weights, costs, c, seed) for c in CODINGS]
    return tuple(Choice(c, c.nbytes(shapes), e) for c, e in zip(CODINGS, errors, strict=True))


def _moved(
    graph: Graph,
    pair: Pair,
    weights: Weights,
    inputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
) -> float:
    """Mean squared distance of the unit embeddings to ``targets``, summed over entries."""
    total = 0.0
    for entry in sorted({e for readers in pair.readers for e, _ in readers}):
        moved = unit_embeddings(graph, entry, inputs[entry], weights)
        total += float((moved - targets[entry]).square().sum(1).mean())
    return total


def check_budget(stored: Graph, pairing: Pairing, budget: int, fixed: Mapping[int, Coding]) -> int:
    """The bytes that a budget leaves for the coded weights; arguments as in ``choose_codings``.

    Raises:
        DataError: not even the smallest codebooks fit; it says what is needed.
    """
    rest = rest_bytes(stored, {name for pair in pairing.pairs for name in pair.tensors})
    least = rest + sum(
        min(c.nbytes([stored.tensors[t].shape for t in pair.tensors]) for c in _allowed(fixed, n))
        for n, pair in enumerate(pairing.pairs)
    )
    if least > budget:
        raise DataError(
            f"a budget of {budget} bytes cannot be met: the smallest codebooks make a file of "
            f"{least} bytes, {rest} of them for what is not coded; raise the budget"
        )
    return budget - rest


def _allowed(fixed: Mapping[int, Coding], number: int) -> tuple[Coding, ...]:
    return (fixed[number],) if number in fixed else CODINGS


def _keep(path: Path, found: Sensitivity) -> None:
    data = {
        "measured": found.measured,
        "factors": found.factors,
        "choices": [
            [
                [_plain(c.coding), c.nbytes, c.error, [_plain(own) for own in c.apart]]
                for c in options
            ]
            for options in found.choices
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(data).encode())


def _plain(coding: Coding) -> list[int]:
    return [coding.k, coding.r]


def _read(path: Path) -> Sensitivity:
    """The pairs that an earlier run measured; none where there is no whole file."""
    try:
        data = json.loads(path.read_bytes())
        choices = tuple(
            tuple(
                Choice(Coding(*coding), size, error, tuple(Coding(*own) for own in apart))
                for coding, size, error, apart in options
            )
            for options in data["choices"]
        )
        lists = tuple(data["measured"]), tuple(data["factors"])
    except (OSError, ValueError, KeyError, TypeError):
        return Sensitivity((), (), (), ())
    return Sensitivity((REFERENCE,) * len(choices), choices, *lists)


def forget_sensitivity(work: Path) -> None:
    """Remove what ``choose_codings`` kept."""
    (work / KEPT).unlink(missing_ok=True)
