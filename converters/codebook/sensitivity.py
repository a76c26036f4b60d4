"""How far the embeddings move when one pair alone is coded, and the codings that follow.

Clustering errors, weighted by importance, are expected errors of the embedding, but under
the assumption that a layer's inputs are uncorrelated. So one coding of each pair is tried in
the network, and the expectations of its other codings are corrected by what was found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from edgeid.converters.codebook.budget import Choice, allocate, expected_error, rest_bytes
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


def choose_codings(
    graph: Graph,
    stored: Graph,
    pairing: Pairing,
    importance: Importance,
    context: Context,
    *,
    budget: int,
    fixed: Mapping[int, Coding],
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

    Raises:
        DataError: the budget cannot be met; it says what is needed.
    """
    rest = rest_bytes(stored, {name for pair in pairing.pairs for name in pair.tensors})
    allowed = [(fixed[n],) if n in fixed else CODINGS for n in range(len(pairing.pairs))]
    _check_budget(graph, pairing, allowed, budget, rest)
    found = measure(graph, pairing, importance, context)
    choices = [
        [choice for choice in options if choice.coding in permitted]
        for options, permitted in zip(found.choices, allowed, strict=True)
    ]
    chosen = allocate(choices, budget - rest)
    return replace(found, codings=tuple(c.coding for c in chosen))


def measure(
    graph: Graph, pairing: Pairing, importance: Importance, context: Context
) -> Sensitivity:
    """The choices of every pair, with expected errors; the reference coding is chosen.

    What an earlier run has kept in ``context.work`` is read from there.
    """
    kept = _read(context.work / KEPT, pairing)
    if kept is not None:
        return kept
    inputs = {
        e: torch.from_numpy(context.inputs(e)[:TRIALS])
        for e in sorted({e for p in pairing.pairs for readers in p.readers for e, _ in readers})
    }
    targets = {entry: unit_embeddings(graph, entry, x) for entry, x in inputs.items()}
    choices, measured, factors = [], [], []
    for pair in context.track(pairing.pairs, "sensitivity"):
        weights = decoded(graph, pair.tensors)
        costs = {name: importance.of(name) for name in weights}
        coded = cluster(weights, costs, REFERENCE, seed=context.seed, iterations=10)
        trial = {name: coded.decode(name) for name in weights}
        error = _moved(graph, pair, trial, inputs, targets)
        measured.append(error)
        factor = min(10.0, max(0.1, error / max(coded.error, 1e-30)))
        factors.append(factor)
        choices.append(coding_choices(weights, costs, factor, context.seed))
    reference = (REFERENCE,) * len(choices)
    found = Sensitivity(reference, tuple(choices), tuple(measured), tuple(factors))
    _keep(context.work / KEPT, found)
    return found


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


def _check_budget(
    graph: Graph, pairing: Pairing, allowed: list[tuple[Coding, ...]], budget: int, rest: int
) -> None:
    """Fail before the long work; see ``allocate`` for the choice itself."""
    least = rest + sum(
        min(c.nbytes([graph.tensors[n].shape for n in pair.tensors]) for c in permitted)
        for pair, permitted in zip(pairing.pairs, allowed, strict=True)
    )
    if least > budget:
        raise DataError(
            f"a budget of {budget} bytes cannot be met: the smallest codebooks make a file of "
            f"{least} bytes, {rest} of them for what is not coded; raise the budget"
        )


def _keep(path: Path, found: Sensitivity) -> None:
    data = {
        "measured": found.measured,
        "factors": found.factors,
        "choices": [
            [[c.coding.k, c.coding.r, c.nbytes, c.error] for c in options]
            for options in found.choices
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(data).encode())


def _read(path: Path, pairing: Pairing) -> Sensitivity | None:
    """What an earlier run measured; None where there is none, or not a whole one."""
    try:
        data = json.loads(path.read_bytes())
        choices = tuple(
            tuple(Choice(Coding(k, r), size, error) for k, r, size, error in options)
            for options in data["choices"]
        )
        lists = tuple(data["measured"]), tuple(data["factors"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not len(choices) == len(lists[0]) == len(lists[1]) == len(pairing.pairs):
        return None
    return Sensitivity((REFERENCE,) * len(choices), choices, *lists)


def forget_sensitivity(work: Path) -> None:
    """Remove what ``choose_codings`` kept."""
    (work / KEPT).unlink(missing_ok=True)
