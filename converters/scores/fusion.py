"""Fusing face and voice scores: weighted logistic regression, cross-fitted by identity.

Linear logistic regression turns two similarities into one log-odds (Brummer et al., "Fusion
of heterogeneous speaker recognition systems", IEEE TASLP 2007), with the quality of the samples
and its products with the similarities where that helps (runtime/fusion.py). At most seven
parameters are fitted by Newton's method, so no optimiser package is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeid.runtime.errors import CalibrationError
from edgeid.runtime.fusion import LARGEST, SMALLEST, QualityTerm
from edgeid.runtime.score import Fusion

Array = NDArray[np.float64]
Measures = tuple[Array | None, Array | None]  # sharpness and speech of the probes, (n,) each

QUALITY_RANGE = 0.01, 0.5, 0.99  # quantiles: beyond the outer ones a quality is cut off
LEAST_GAIN = 0.01  # share of the loss that a measure has to save: less is chance
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
    sharpness: ArrayLike | None = None,
    speech: ArrayLike | None = None,
) -> FusionFit:
    """Fit log-odds = bias + face * s_f + voice * s_v to trials, with held-out scores.

    Where the quality of the probes is given, bias and weights may depend on it: on the sharpness
    where that lowers the logarithmic loss of the held-out scores by ``LEAST_GAIN`` or more, and
    then on the seconds of speech, likewise.

    Identities are parted into ``folds`` groups at random. A trial of which both identities
    lie in group g is scored by parameters fitted on the trials neither of whose identities
    lies in g: no person is scored by parameters that saw that person, as claimed or as
    probe. Trials across two groups are used for fitting only (where neither group is held
    out) and get NaN.

    Args:
        face_scores, voice_scores: (n,) similarities.
        labels: (n,) 1 for genuine, 0 for impostor.
        identities: (n, 2) claimed and probe identity (any sortable labels).
        sharpness, speech: (n,) measures of the probes, above 0 (``Fusion.log_odds``).

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
    used: Measures = (None, None)
    held_out = _cross_fit(x, y, groups, used, options)
    photos, utterances = _measured(sharpness, len(y)), _measured(speech, len(y))
    if photos is not None:
        held_out, used = _better((held_out, used), (photos, None), x, y, groups, options)
    if utterances is not None:
        held_out, used = _better((held_out, used), (used[0], utterances), x, y, groups, options)
    return FusionFit(_fit(x, y, used, options), held_out, options.folds)


def _better(
    found: tuple[Array, Measures],
    measures: Measures,
    x: Array,
    y: NDArray[np.bool_],
    groups: NDArray[np.intp],
    options: FusionOptions,
) -> tuple[Array, Measures]:
    """Held-out scores by other measures, and these, if they lower the loss; else what is there."""
    scores = _cross_fit(x, y, groups, measures, options)
    enough = (1 - LEAST_GAIN) * held_out_loss(found[0], y, options)
    return (scores, measures) if held_out_loss(scores, y, options) < enough else found


def _cross_fit(
    x: Array,
    y: NDArray[np.bool_],
    groups: NDArray[np.intp],
    measures: Measures,
    options: FusionOptions,
) -> Array:
    """Scores (n,) of trials within one group by parameters of the others; NaN for others."""
    held_out = np.full(len(y), np.nan)
    for group in range(options.folds):
        inside = (groups == group).all(axis=1)
        outside = (groups != group).all(axis=1)
        if inside.any():
            fusion = _fit(x[outside], y[outside], _where(measures, outside), options)
            face, voice = x[inside].T
            held_out[inside] = fusion.log_odds(face, voice, *_where(measures, inside))
    return held_out


def _where(measures: Measures, chosen: NDArray[np.bool_]) -> Measures:
    sharpness, speech = (None if part is None else part[chosen] for part in measures)
    return sharpness, speech


def _measured(values: ArrayLike | None, count: int) -> Array | None:
    if values is None:
        return None
    measured = np.asarray(values, np.float64)
    if measured.shape != (count,) or not np.isfinite(measured).all():
        raise CalibrationError(f"quality {measured.shape}: needs {count} finite measures")
    return measured


def held_out_loss(scores: Array, y: NDArray[np.bool_], options: FusionOptions) -> float:
    """Mean logarithmic loss of log-odds, of those that are not NaN, each kind at its prior."""
    known = ~np.isnan(scores)
    genuine = np.logaddexp(0.0, -scores[known & y]).mean()
    impostor = np.logaddexp(0.0, scores[known & ~y]).mean()
    return float(options.prior * genuine + (1 - options.prior) * impostor)


def trial_weights(genuine: NDArray[np.bool_], prior: float) -> Array:
    """Weights (n,) of trials, those of genuine ones (n,) adding up to ``prior``, all to 1."""
    count = int(genuine.sum())
    return np.where(genuine, prior / count, (1 - prior) / (len(genuine) - count))


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


def _fit(x: Array, y: NDArray[np.bool_], measures: Measures, options: FusionOptions) -> Fusion:
    """Parameters for trials x (n, 2), y (n,); a weight that would be negative is set to 0."""
    genuine = int(y.sum())
    if not 0 < genuine < len(y):
        raise CalibrationError(f"{genuine} genuine of {len(y)} trials: needs both kinds")
    weights = trial_weights(y, options.prior)
    scales = [None if part is None else _range(part) for part in measures]
    columns = np.column_stack(
        [x, *(_quality_columns(*o) for o in zip(x.T, measures, scales, strict=True))]
    )
    centre = weights @ columns
    spread = np.sqrt(weights @ (columns - centre) ** 2)
    used = spread > 1e-12
    while used[:2].any():
        z = (columns[:, used] - centre[used]) / spread[used]
        solution = newton(np.column_stack([np.ones(len(y)), z]), y, weights, options.l2)
        slopes = np.zeros(len(used))
        slopes[used] = solution[1:] / spread[used]
        terms = [_term(scale, slopes[2 + 2 * i :][:2]) for i, scale in enumerate(scales)]
        wrong = _misleading(slopes, terms)
        if not wrong.any() and slopes[:2].any():
            bias = float(solution[0] - slopes @ centre)
            return Fusion(bias, float(slopes[0]), float(slopes[1]), *terms)
        if not wrong.any():
            break
        used &= ~wrong
    raise CalibrationError("neither score tells genuine from impostor trials; nothing to fuse")


def _range(measured: Array) -> QualityTerm:
    """The range of a measure, as a term without effect."""
    low, usual, high = np.clip(np.quantile(measured, QUALITY_RANGE), SMALLEST, LARGEST)
    return QualityTerm(float(low), float(usual), float(high), 0.0, 0.0)


def _quality_columns(scores: Array, measured: Array | None, scale: QualityTerm | None) -> Array:
    """(n, 2): what bias and weight of a term multiply; zeros where nothing was measured."""
    if measured is None or scale is None:
        return np.zeros((len(scores), 2))
    levels = scale.levels(measured)
    return np.stack([levels, levels * scores], axis=1)


def _term(scale: QualityTerm | None, slopes: Array) -> QualityTerm | None:
    if scale is None or not slopes.any():
        return None
    return replace(scale, bias=float(slopes[0]), weight=float(slopes[1]))


def _misleading(slopes: Array, terms: list[QualityTerm | None]) -> NDArray[np.bool_]:
    """Which parameters would let a less similar sample score better, and so have to go."""
    wrong = np.zeros(len(slopes), np.bool_)
    for i, term in enumerate(terms):
        if slopes[i] < 0 or (slopes[i] == 0 and slopes[2 + 2 * i :][:2].any()):
            # A modality where more similar meant less likely carries no evidence.
            wrong[[i, 2 + 2 * i, 3 + 2 * i]] = True
        elif term is not None and term.least(float(slopes[i])) < 0:
            wrong[3 + 2 * i] = True
    return wrong


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
