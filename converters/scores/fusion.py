"""Fusing face and voice scores: weighted logistic regression, cross-fitted by identity.

Linear logistic regression turns two similarities into one log-odds (Brummer et al., "Fusion
of heterogeneous speaker recognition systems", IEEE TASLP 2007). Three parameters are fitted
by Newton's method, so no optimiser package is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeid.runtime.errors import CalibrationError
from edgeid.runtime.score import Fusion

MAX_NEWTON_STEPS = 100
DECREMENT_TOLERANCE = 1e-15


@dataclass(frozen=True)
class FusionOptions:
    """How the regression is fitted.

    Attributes:
        prior: weight of all genuine trials together, in (0, 1); impostor trials weigh the
            rest, whatever the numbers of trials. At 0.5 the fused score is a log-likelihood
            ratio; a lower prior fits the region of rare false matches more closely.
        l2: penalty on the squared weights of the standardised scores; it keeps the weights
            finite when the trials can be separated without error.
        folds: number of groups of identities that are scored by parameters of the others.
        seed: of the partition into groups.
    """

    prior: float = 0.5
    l2: float = 1e-4
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.prior < 1 or not 0 < self.l2 < 1e6 or self.folds < 2:
            raise CalibrationError(f"needs prior in (0, 1), 0 < l2 < 1e6, folds >= 2: {self}")


@dataclass(frozen=True)
class FusionFit:
    """Result of ``fit_fusion``.

    Attributes:
        fusion: parameters from all trials: the ones to use.
        held_out: (n,) fused score of each trial by parameters of other people only; NaN for
            trials between two groups, which have no such parameters.
        folds: number of groups.
    """

    fusion: Fusion
    held_out: NDArray[np.float64]
    folds: int


def fit_fusion(
    face_scores: ArrayLike,
    voice_scores: ArrayLike,
    labels: ArrayLike,
    identities: ArrayLike,
    options: FusionOptions | None = None,
) -> FusionFit:
    """Fit log-odds = bias + face * s_f + voice * s_v to trials, with held-out scores.

    Identities are parted into ``folds`` groups at random. A trial of which both identities
    lie in group g is scored by parameters fitted on the trials neither of whose identities
    lies in g: no person is scored by parameters that saw that person, as claimed or as
    probe. Trials across two groups are used for fitting only (where neither group is held
    out) and get NaN.

    Args:
        face_scores, voice_scores: (n,) similarities.
        labels: (n,) 1 for genuine, 0 for impostor.
        identities: (n, 2) claimed and probe identity (any sortable labels).

    Raises CalibrationError for shapes that do not fit, values that are not finite, or when a
    class has no trial in all trials or outside one of the groups.
    """
    options = options or FusionOptions()
    x, y = _trials(face_scores, voice_scores, labels)
    pairs = np.asarray(identities)
    if pairs.shape != (len(y), 2):
        raise CalibrationError(f"{len(y)} trials need identities ({len(y)}, 2), got {pairs.shape}")
    names, codes = np.unique(pairs, return_inverse=True)
    if len(names) < options.folds:
        raise CalibrationError(
            f"{len(names)} identities cannot be parted into {options.folds} groups"
        )
    rng = np.random.default_rng(options.seed)
    group_of = rng.permutation(np.arange(len(names)) % options.folds)
    groups = group_of[codes.reshape(pairs.shape)]
    held_out = np.full(len(y), np.nan)
    for group in range(options.folds):
        inside = (groups == group).all(axis=1)
        outside = (groups != group).all(axis=1)
        if inside.any():
            fusion = _fit(x[outside], y[outside], options)
            held_out[inside] = fusion.log_odds(x[inside, 0], x[inside, 1])
    return FusionFit(_fit(x, y, options), held_out, options.folds)


def _trials(
    face_scores: ArrayLike, voice_scores: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    face, voice = np.asarray(face_scores, np.float64), np.asarray(voice_scores, np.float64)
    truth = np.asarray(labels)
    if face.ndim != 1 or not face.shape == voice.shape == truth.shape:
        raise CalibrationError(
            f"scores and labels must be three vectors of one length, got "
            f"{face.shape}, {voice.shape}, {truth.shape}"
        )
    x = np.stack([face, voice], axis=1)
    if not np.isfinite(x).all():
        raise CalibrationError("calibration scores are not finite")
    if not np.isin(truth, (0, 1)).all():
        raise CalibrationError("labels must be 1 (genuine) or 0 (impostor)")
    return x, truth.astype(bool)


def _fit(x: NDArray[np.float64], y: NDArray[np.bool_], options: FusionOptions) -> Fusion:
    """Parameters for trials x (n, 2), y (n,); a weight that would be negative is set to 0."""
    genuine = int(y.sum())
    if not 0 < genuine < len(y):
        raise CalibrationError(f"{genuine} genuine of {len(y)} trials: needs both kinds")
    weights = np.where(y, options.prior / genuine, (1 - options.prior) / (len(y) - genuine))
    centre = weights @ x
    spread = np.sqrt(weights @ (x - centre) ** 2)
    used = spread > 1e-12
    while used.any():
        z = (x[:, used] - centre[used]) / spread[used]
        solution = newton(np.column_stack([np.ones(len(y)), z]), y, weights, options.l2)
        slopes = np.zeros(2)
        slopes[used] = solution[1:] / spread[used]
        # A modality where more similar meant less likely would let a worse sample score
        # better; it carries no evidence then and is left out.
        if (slopes >= 0).all() and slopes.any():
            return Fusion(float(solution[0] - slopes @ centre), *map(float, slopes))
        used &= slopes > 0
    raise CalibrationError("neither score tells genuine from impostor trials; nothing to fuse")


def newton(
    x: NDArray[np.float64], y: NDArray[np.bool_], weights: NDArray[np.float64], l2: float
) -> NDArray[np.float64]:
    """Weighted, penalised logistic regression: the minimiser b (d,) of

        sum_i weights_i * log(1 + exp(-s_i x_i.b)) + l2/2 * sum_{j>0} b_j^2,  s_i = +1 or -1

    by Newton's method with step halving. Column 0 of x (n, d) is the unpenalised constant.
    """
    penalty = np.full(x.shape[1], l2)
    penalty[0] = 0.0
    sign = np.where(y, 1.0, -1.0)

    def loss(b: NDArray[np.float64]) -> float:
        data = weights @ np.logaddexp(0.0, -sign * (x @ b))
        return float(data + 0.5 * penalty @ b**2)

    solution = np.zeros(x.shape[1])
    current = loss(solution)
    for _ in range(MAX_NEWTON_STEPS):
        p = 0.5 * (1.0 + np.tanh(0.5 * (x @ solution)))
        gradient = x.T @ (weights * (p - y)) + penalty * solution
        hessian = (x * (weights * p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        # The constant has no penalty: a floor keeps the system solvable when p is 0 or 1.
        step = np.linalg.solve(hessian + 1e-12 * np.eye(len(hessian)), gradient)
        if gradient @ step < DECREMENT_TOLERANCE:  # twice what the loss can still fall
            break
        scale = 1.0
        while loss(solution - scale * step) > current and scale > 1e-9:
            scale /= 2
        solution = solution - scale * step
        current = loss(solution)
    return solution
