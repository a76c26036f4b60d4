"""What the agreement of templates says of similarities, learnt from people (runtime/agreement.py).

Logistic regression of genuine against impostor comparisons over similarity and agreement; only the
ratio of the two weights is kept, since curves and fusion are measured on what it makes of scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeid.converters.scores.fusion import (
    LEAST_GAIN,
    QUALITY_RANGE,
    FusionOptions,
    held_out_loss,
    newton,
    trial_weights,
)
from edgeid.converters.scores.views import Views
from edgeid.runtime.agreement import HEAVIEST, Agreement, agreement_of
from edgeid.runtime.score import Backend, centroids_of, similarity_matrix

Array = NDArray[np.float64]
PRIOR = 0.01  # of genuine comparisons; larger ones overdo it (see ``fit_agreement``)
ROUNDS = 8  # in which other samples of a person enrol
IMPOSTORS = 20_000  # impostor comparisons of a round and view, at most
GROUPS = 20  # of people, each of which is left out of a fit in turn
LEAST_PEOPLE = 10


@dataclass(frozen=True)
class _Comparisons:
    """Comparisons (n,): similarity, agreement, whether genuine, groups of both."""

    scores: Array
    agreements: Array
    genuine: NDArray[np.bool_]
    groups: NDArray[np.intp]  # (n, 2)


def fit_agreement(
    people: Sequence[Views],
    enrol: int,
    probes: int,
    options: FusionOptions,
    backend: Backend | None = None,
) -> Agreement | None:
    """What agreement shall take from similarities; None where that does not help.

    Templates and probes are of the same view: who says little at enrolment says little later,
    and a poor camera stays where it is.

    Args:
        people: their samples.
        enrol: samples that enrol each; 1 gives None.
        probes: further samples compared, at most.
        options: penalty and seed.
        backend: scores in place of the cosine.

    Devices decide where false matches are rare, so genuine comparisons weigh ``PRIOR``, as in the
    speaker recognition evaluations of NIST. Larger shares give agreement more weight: that helps
    between sets, where people say more in one than in another, and hurts within them. On people
    held out, EERs within sets rise from a weight of 0.6 on, most of all where speakers act.

    The logarithmic loss of people who are left out of the fit has to fall by ``LEAST_GAIN``.
    """
    people = [own for own in people if len(own) > enrol]
    if enrol < 2 or len(people) < LEAST_PEOPLE:
        return None
    options = replace(options, prior=PRIOR)
    rng = np.random.default_rng(options.seed)
    rounds = ([own.permuted(rng) for own in people] for _ in range(ROUNDS))
    views = range(people[0].embeddings.shape[0])
    parts = [_compared(own, view, enrol, probes, backend) for own in rounds for view in views]
    scores, agreements, genuine, groups = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("scores", "agreements", "genuine", "groups")
    )
    low, _, high = (float(q) for q in np.quantile(agreements, QUALITY_RANGE))
    # of samples as recorded, so that one template and several keep to one threshold
    usual = float(np.median(np.concatenate([part.agreements for part in parts[:: len(views)]])))
    if not low < high:
        return None
    columns = np.stack([scores, np.clip(agreements, low, high) - usual], axis=1)
    alone = _cross_fitted(columns[:, :1], genuine, groups, options)
    both = _cross_fitted(columns, genuine, groups, options)
    before, after = (held_out_loss(odds, genuine, options) for odds in (alone, both))
    _, of_score, of_agreement = _fit(columns, genuine, options)
    if after >= (1 - LEAST_GAIN) * before or of_score <= 0:
        return None
    believed = (enrol - 1) / (enrol + 1)
    weight = float(-of_agreement / of_score / believed)
    return Agreement(low, usual, high, weight) if 0 < weight <= HEAVIEST else None


def _compared(
    people: Sequence[Views],
    view: int,
    enrol: int,
    probes: int,
    backend: Backend | None,
) -> _Comparisons:
    templates = [own.embeddings[view, :enrol] for own in people]
    others = [own.embeddings[view, enrol : enrol + probes] for own in people]
    scores = similarity_matrix(templates, np.concatenate(others), backend)
    agreements = agreement_of(centroids_of(templates), [enrol] * len(people))
    owners = np.repeat(np.arange(len(people)), [len(rows) for rows in others])
    claimed, owner = np.broadcast_arrays(np.arange(len(people))[:, None], owners)
    genuine = (claimed == owner).ravel()
    impostors = np.flatnonzero(~genuine)
    some = impostors[:: max(1, -(-len(impostors) // IMPOSTORS))]
    kept = np.concatenate([np.flatnonzero(genuine), some])
    groups = np.stack([claimed.ravel(), owner.ravel()], axis=1)[kept] % GROUPS
    at = np.broadcast_to(agreements[:, None], scores.shape).ravel()[kept]
    return _Comparisons(scores.ravel()[kept], at, genuine[kept], groups)


def _cross_fitted(
    columns: Array, genuine: NDArray[np.bool_], groups: NDArray[np.intp], options: FusionOptions
) -> Array:
    """Log-odds (n,) of comparisons to a person, by a fit to those without anybody of the group."""
    odds = np.empty(len(genuine))
    for group in np.unique(groups[:, 0]):
        claimed, others = groups[:, 0] == group, (groups != group).all(axis=1)
        solution = _fit(columns[others], genuine[others], options)
        odds[claimed] = solution[0] + columns[claimed] @ solution[1:]
    return odds


def _fit(columns: Array, genuine: NDArray[np.bool_], options: FusionOptions) -> Array:
    """Bias and weights of the regression, genuine comparisons at the prior."""
    share = trial_weights(genuine, options.prior)
    spread = np.sqrt(share @ (columns - share @ columns) ** 2).clip(1e-12)
    ones = np.ones((len(genuine), 1))
    solution = newton(np.hstack([ones, columns / spread]), genuine, share, options.l2)
    return np.concatenate([solution[:1], solution[1:] / spread])
