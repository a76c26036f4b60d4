"""Which units of a teacher a student should learn: those that carry identity, each once.

Luo et al., "Face model compression by distilling knowledge from neurons" (AAAI 2016), choose
neurons by a small graphical model over keep and drop: a term for each unit, and one for each
pair that punishes keeping two units that say the same. Identity labels take the place of
the paper's attributes. Of y in {0, 1}^d the best has the largest

    objective(y) = sum_i (share_i - cost) y_i - penalty * sum_{i<j} redundancy_ij y_i y_j

share_i is the share of a unit's variance that lies between identities, F / (1 + F) for the
Fisher ratio F = between / within: it ranks units as F does and, like a correlation, lies in
0..1. redundancy_ij is |correlation| above a tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeid.runtime.errors import DataError

Array = NDArray[np.float64]
Kept = NDArray[np.bool_]

SMALLEST_GAIN = 1e-12
INVERSE_TEMPERATURES = tuple(float(b) for b in np.geomspace(1.0, 256.0, 17))
SWEEPS = 4  # over all units at each temperature


@dataclass(frozen=True)
class SelectionOptions:
    """What a unit has to be worth.

    Attributes:
        cost: share of between-identity variance below which a unit is noise, in 0..1.
        penalty: for keeping two units of correlation +-1; above 1 - cost, one of them goes
            however good they are.
        tolerance: |correlation| that is no redundancy yet, in [0, 1): among hundreds of
            units small correlations are many, and would add up against good units.
        count: how many units to keep; None keeps those that raise the objective.
        solver: "greedy", or "mean_field" annealed from a high temperature.
    """

    cost: float = 0.05
    penalty: float = 1.0
    tolerance: float = 0.3
    count: int | None = None
    solver: Literal["greedy", "mean_field"] = "greedy"

    def __post_init__(self) -> None:
        if not (0 <= self.cost <= 1 and 0 <= self.tolerance < 1 and 0 <= self.penalty <= 1e6):
            raise DataError(f"needs cost in 0..1, tolerance in [0, 1), penalty >= 0: {self}")
        if self.count is not None and self.count < 1:
            raise DataError(f"at least one unit has to be kept, not {self.count}")
        if self.solver not in ("greedy", "mean_field"):
            raise DataError(f"solver {self.solver!r}: there are 'greedy' and 'mean_field'")


@dataclass(frozen=True, eq=False)
class Selection:
    """The units kept, in rising order, and the Fisher ratio of all units (d,)."""

    indices: NDArray[np.intp]
    fisher: Array
    objective: float

    @property
    def scores(self) -> Array:
        """Fisher ratios of the units kept."""
        return np.asarray(self.fisher[self.indices])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the ratios of dropped units are left out."""
        return {
            "units": len(self.fisher),
            "kept": [int(i) for i in self.indices],
            "fisher": [float(f"{score:.6g}") for score in self.scores],
            "objective": self.objective,
        }


@dataclass(frozen=True, eq=False)
class SelectionProblem:
    """The objective of the module's docstring: gains (d,), penalties (d, d) with zero diagonal."""

    gains: Array
    penalties: Array

    def value(self, kept: Kept) -> float:
        """The objective of one choice."""
        pairs = self.penalties[np.ix_(kept, kept)].sum() / 2
        return float(self.gains[kept].sum() - pairs)

    def fields(self, kept: NDArray[Any]) -> Array:
        """What each unit would add, given the others kept (or kept with a probability)."""
        return np.asarray(self.gains - self.penalties @ kept)


def select_units(
    features: ArrayLike, labels: ArrayLike, options: SelectionOptions | None = None
) -> Selection:
    """The units of a hidden layer that are worth regressing.

    Args:
        features: (N, d) activations of a teacher.
        labels: (N,) identities, of which some have several samples.

    Raises:
        DataError: shapes that do not fit, values that are not finite, fewer than two
            identities, none with two samples, or no unit that is worth its cost.
    """
    options = options or SelectionOptions()
    x, codes = _checked(features, labels)
    if options.count is not None and options.count > x.shape[1]:
        raise DataError(f"{options.count} units asked for, the layer has {x.shape[1]}")
    fisher = fisher_ratios(x, codes)
    problem = selection_problem(fisher, correlations(x), options)
    solve = solve_greedily if options.solver == "greedy" else solve_mean_field
    kept = solve(problem, options.count)
    if not kept.any():
        raise DataError(
            f"no unit carries identity: the best Fisher ratio is {fisher.max():.3g}; are the "
            f"labels those of the features? A lower cost than {options.cost} keeps more"
        )
    return Selection(np.flatnonzero(kept), fisher, problem.value(kept))


def fisher_ratios(features: Array, codes: NDArray[np.intp]) -> Array:
    """(d,) variance between identities over variance within, by analysis of variance.

    Identity means scatter even where a unit knows nothing of identity; the part that chance
    explains is taken off (the unbiased estimate for groups of different size), so that
    noise is near 0. At most 1e12, for a unit that is constant within every identity.
    """
    counts = np.bincount(codes).astype(np.float64)
    centred = _centred(features)
    sums = np.zeros((len(counts), features.shape[1]))
    np.add.at(sums, codes, centred)
    means = sums / counts[:, None]
    within = ((centred - means[codes]) ** 2).sum(axis=0) / (len(codes) - len(counts))
    between = (counts[:, None] * means**2).sum(axis=0) / (len(counts) - 1)
    size = (counts.sum() - (counts**2).sum() / counts.sum()) / (len(counts) - 1)
    own = np.maximum(between - within, 0.0) / size
    floor = np.maximum(within, 1e-12 * own)
    return np.asarray(np.divide(own, floor, out=np.zeros_like(own), where=own > 0))


def correlations(features: Array) -> Array:
    """(d, d) correlation of every two units; 0 with a unit that never changes."""
    centred = _centred(features)
    lengths = np.linalg.norm(centred, axis=0)
    unit = centred / np.where(lengths > 0, lengths, 1.0)
    return np.asarray(np.clip(unit.T @ unit, -1.0, 1.0))


def _centred(features: Array) -> Array:
    """Without the mean; rounding leaves a constant unit a tiny scatter, which must not count."""
    centred = features - features.mean(axis=0)
    alive = np.linalg.norm(centred, axis=0) > 1e-7 * np.linalg.norm(features, axis=0)
    return np.asarray(np.where(alive, centred, 0.0))


def selection_problem(
    fisher: Array, correlation: Array, options: SelectionOptions
) -> SelectionProblem:
    """Gains and penalties from Fisher ratios (d,) and correlations (d, d)."""
    excess = np.maximum(np.abs(correlation) - options.tolerance, 0) / (1 - options.tolerance)
    np.fill_diagonal(excess, 0.0)
    return SelectionProblem(fisher / (1 + fisher) - options.cost, options.penalty * excess)


def solve_greedily(problem: SelectionProblem, count: int | None = None) -> Kept:
    """The better of growing and of thinning out, each improved by exchanges.

    Growing adds the unit that adds most until none helps; thinning out starts from all units
    and drops the one that costs most. A unit that is best alone but stands against several
    others misleads the first and not the second.
    """
    found = [_steps(problem, count, adding) for adding in (True, False)]
    found = [_exchanged(problem, kept, free=count is None) for kept in found]
    return max(found, key=problem.value)


def _steps(problem: SelectionProblem, count: int | None, adding: bool) -> Kept:
    kept = np.full(len(problem.gains), not adding)
    fields = problem.fields(kept)
    sign = 1.0 if adding else -1.0
    for _ in range(len(kept)):
        change = np.where(kept == adding, -np.inf, sign * fields)
        best = int(change.argmax())
        if kept.sum() == count or (count is None and change[best] <= SMALLEST_GAIN):
            break
        kept[best] = adding
        fields -= sign * problem.penalties[best]
    return kept


def solve_mean_field(problem: SelectionProblem, count: int | None = None) -> Kept:
    """Naive mean field of p(y) ~ exp(beta * objective(y)), beta rising, then exchange.

    Units are updated one after the other, q_i = sigmoid(beta * field_i), which never lowers
    the variational bound at one beta. With ``count`` a common price for all units is set
    before each sweep so that as many are expected to be kept.
    """
    probability = np.full(len(problem.gains), 0.5)
    fields = problem.fields(probability)
    for beta in INVERSE_TEMPERATURES:
        for _ in range(SWEEPS):
            price = 0.0 if count is None else _price(fields, beta, count)
            for i in range(len(fields)):
                changed = _sigmoid(beta * (fields[i] - price)) - probability[i]
                probability[i] += changed
                fields -= changed * problem.penalties[i]
    kept = probability > 0.5
    if count is not None:
        kept[:] = False
        kept[np.argsort(-fields, kind="stable")[:count]] = True
    return _exchanged(problem, kept, free=count is None)


def _exchanged(problem: SelectionProblem, kept: Kept, free: bool) -> Kept:
    """Adds, drops (only if ``free``), swaps and chains of them as long as the objective rises."""
    while True:
        fields = problem.fields(kept)
        change = np.where(kept, -fields, fields)
        if free and change.max() > SMALLEST_GAIN:
            kept[int(change.argmax())] ^= True
            continue
        inside, outside = np.flatnonzero(kept), np.flatnonzero(~kept)
        if not (len(inside) and len(outside)):
            return kept
        swaps = fields[outside] - fields[inside, None] + problem.penalties[np.ix_(inside, outside)]
        if swaps.max() > SMALLEST_GAIN:
            row, column = np.unravel_index(int(swaps.argmax()), swaps.shape)
            kept[inside[row]], kept[outside[column]] = False, True
            continue
        better = _chained(problem, kept, fields) if free else None
        if better is None:
            return kept
        kept = better


def _chained(problem: SelectionProblem, kept: Kept, fields: Array) -> Kept | None:
    """A better choice that begins with a flip for the worse, such as one in and two out."""
    for unit in range(len(kept)):
        trial, field = kept.copy(), fields.copy()
        flipped, total = unit, 0.0
        while True:
            sign = -1.0 if trial[flipped] else 1.0
            total += sign * field[flipped]
            trial[flipped] ^= True
            field -= sign * problem.penalties[flipped]
            change = np.where(trial, -field, field)
            change[unit] = -np.inf  # the first flip stands
            flipped = int(change.argmax())
            if change[flipped] <= SMALLEST_GAIN:
                break
        if total > SMALLEST_GAIN:
            return trial
    return None


def _price(fields: Array, beta: float, count: int) -> float:
    """The price at which ``count`` units are expected to be kept."""
    low, high = float(fields.min()) - 50 / beta, float(fields.max()) + 50 / beta
    for _ in range(60):
        middle = (low + high) / 2
        if _sigmoid(beta * (fields - middle)).sum() > count:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _sigmoid(x: Any) -> Any:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _checked(features: ArrayLike, labels: ArrayLike) -> tuple[Array, NDArray[np.intp]]:
    x, names = np.asarray(features, np.float64), np.asarray(labels)
    if x.ndim != 2 or not x.size or names.shape != (len(x),):
        raise DataError(f"features {x.shape} and labels {names.shape}: needs (N, d) and (N,)")
    if not np.isfinite(x).all():
        raise DataError("the features hold NaN or infinity")
    identities, codes = np.unique(names, return_inverse=True)
    if not 2 <= len(identities) < len(x):
        raise DataError(
            f"{len(x)} samples of {len(identities)} identities: needs two identities or more, "
            "and one that has two samples"
        )
    return x, np.asarray(codes, np.intp)
