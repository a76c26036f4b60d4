"""Error rates of verification, each with its interval and number of trials.

Terms follow ISO/IEC 19795-1 (roc.py); minDCF is that of the
NIST speaker recognition evaluations, HTER that of the BANCA protocol (Bailly-Bailliere et
al. 2003), the accuracy that of LFW (Huang et al. 2007).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeid.intervals import (
    CONFIDENCE,
    Rate,
    binomial_rate,
    bootstrap,
    clopper_pearson,
    percentiles,
)
from edgeid.roc import Array, Ranking, Roc, Trials, check_trials, roc
from edgeid.runtime.curve import RULE_OF_THREE
from edgeid.runtime.errors import DataError

__all__ = [
    "OperatingPoint",
    "Rate",
    "Roc",
    "Trials",
    "best_accuracy",
    "best_threshold",
    "binomial_rate",
    "clopper_pearson",
    "cross_accuracy",
    "eer_and_min_dcf",
    "equal_error_rate",
    "error_rates",
    "fnmr_at_fmr",
    "hter",
    "min_dcf",
    "roc",
    "split_accuracy",
]


@dataclass(frozen=True)
class OperatingPoint:
    """FNMR at an FMR; threshold and fnmr are None where the FMR is below 3/impostors."""

    fmr: float
    impostors: int
    threshold: float | None
    fnmr: Rate | None

    def to_dict(self) -> dict[str, object]:
        return {
            "fmr": self.fmr,
            "supported": self.fnmr is not None,
            "impostors": self.impostors,
            "threshold": self.threshold,
            "fnmr": None if self.fnmr is None else self.fnmr.to_dict(),
        }


def equal_error_rate(scores: ArrayLike, genuine: ArrayLike) -> float:
    """EER: where FMR = FNMR on the straight lines between neighbouring ROC vertices.

    Only the order of the scores matters. Ties between classes are a sloping line, as if
    broken at random. 0 for perfect separation, 1 for perfect inversion.
    """
    return _eer(*Ranking(scores, genuine).rates())


def _eer(fmr: Array, fnmr: Array) -> float:
    difference = fmr - fnmr
    if np.isnan(difference[0]):
        return float("nan")
    after = int(np.argmax(difference >= 0))
    before = after - 1
    share = -difference[before] / (difference[after] - difference[before])
    return float(fmr[before] + share * (fmr[after] - fmr[before]))


def min_dcf(scores: ArrayLike, genuine: ArrayLike, p_target: float = 0.01) -> float:
    """Least detection cost over all thresholds, divided by that of the better fixed answer.

    Cost = p_target * FNMR + (1 - p_target) * FMR (both kinds of error cost 1); in [0, 1].
    """
    return _min_dcf(*Ranking(scores, genuine).rates(), p_target)


def _min_dcf(fmr: Array, fnmr: Array, p_target: float) -> float:
    cost = p_target * fnmr + (1 - p_target) * fmr
    return float(cost.min() / min(p_target, 1 - p_target))


def eer_and_min_dcf(
    trials: Trials, p_target: float = 0.01, draws: int = 1000, seed: int = 0
) -> tuple[Rate, Rate]:
    """EER and minDCF with bootstrap intervals over identities.

    The interval of the EER is never narrower than the binomial one of the genuine trials:
    without an error in the sample, every draw is free of errors too, and says nothing.
    errors and trials are counts of wrong decisions among all trials at the vertex that is
    nearest to FMR = FNMR, or of least cost.
    """
    ranking = Ranking(trials.scores, trials.genuine)

    def both(weights: Array | None) -> tuple[float, float]:
        rates = ranking.rates(weights)
        return _eer(*rates), _min_dcf(*rates, p_target)

    fmr, fnmr = ranking.rates()
    eer, dcf = both(None)
    table = bootstrap(trials.claimed, trials.probe, both, draws, seed)
    positives = int(trials.genuine.sum())
    negatives = len(trials.genuine) - positives
    wrong = np.rint(fmr * negatives + fnmr * positives).astype(int)
    near = int(np.argmin(np.abs(fmr - fnmr)))
    least = int(np.argmin(p_target * fnmr + (1 - p_target) * fmr))
    low, high = percentiles(table[:, 0], eer)
    exact = clopper_pearson(round(eer * positives), positives)
    return (
        Rate(eer, min(low, exact[0]), max(high, exact[1]), int(wrong[near]), len(trials.genuine)),
        Rate(dcf, *percentiles(table[:, 1], dcf), int(wrong[least]), len(trials.genuine)),
    )


def fnmr_at_fmr(scores: ArrayLike, genuine: ArrayLike, fmr: float) -> OperatingPoint:
    """FNMR at the lowest threshold with FMR <= ``fmr``, if the impostor trials support it."""
    if not 0 < fmr < 1:
        raise DataError(f"a false match rate lies between 0 and 1, got {fmr!r}")
    curve = roc(scores, genuine)
    labels = np.asarray(genuine, bool)
    positives = int(labels.sum())
    impostors = len(labels) - positives
    if fmr < RULE_OF_THREE / impostors:
        return OperatingPoint(fmr, impostors, None, None)
    last = int(np.flatnonzero(curve.fmr <= fmr)[-1])
    threshold = curve.thresholds[last]
    if np.isinf(threshold):  # the best impostors tie: accept nothing up to their score
        threshold = np.nextafter(curve.thresholds[1], np.inf)
    errors = round(float(curve.fnmr[last]) * positives)
    return OperatingPoint(fmr, impostors, float(threshold), binomial_rate(errors, positives))


def error_rates(scores: ArrayLike, genuine: ArrayLike, threshold: float) -> tuple[Rate, Rate]:
    """FMR and FNMR at a threshold fixed beforehand."""
    values, labels = np.asarray(scores, np.float64), np.asarray(genuine, bool)
    check_trials(values, labels)
    accepted = values >= threshold
    positives = int(labels.sum())
    return (
        binomial_rate(int((accepted & ~labels).sum()), len(labels) - positives),
        binomial_rate(int((~accepted & labels).sum()), positives),
    )


def best_threshold(scores: ArrayLike, genuine: ArrayLike) -> float:
    """Threshold of the highest accuracy, half-way to the next lower score.

    Of several equally good ones the middle one is taken.
    """
    return _least_wrong(roc(scores, genuine), float(np.mean(np.asarray(genuine, bool))))


def _least_wrong(curve: Roc, share: float) -> float:
    """Best threshold where ``share`` of the trials are genuine."""
    wrong = share * curve.fnmr + (1 - share) * curve.fmr
    best = np.flatnonzero(wrong < wrong.min() + 1e-12)
    return _midway(curve, int(best[len(best) // 2]))


def _midway(curve: Roc, vertex: int) -> float:
    """Threshold with the rates of a vertex, half-way from its score to the next lower one.

    On other trials neither kind of error is then favoured, as it would be on the score
    itself, which belongs to one of the trials.
    """
    upper = curve.thresholds[vertex]
    lower = curve.thresholds[min(vertex + 1, len(curve.thresholds) - 1)]
    if np.isinf(upper):
        return float(np.nextafter(lower, np.inf))
    middle = lower + (upper - lower) / 2
    return float(middle if middle > lower else upper)


def best_accuracy(scores: ArrayLike, genuine: ArrayLike) -> Rate:
    """Accuracy at the best threshold on the same trials: optimistic."""
    values, labels = np.asarray(scores, np.float64), np.asarray(genuine, bool)
    return _accuracy(values, labels, best_threshold(values, labels))


def _accuracy(scores: Array, genuine: NDArray[np.bool_], threshold: float) -> Rate:
    errors = int(((scores >= threshold) != genuine).sum())
    return binomial_rate(errors, len(genuine)).complement()


def cross_accuracy(trials: Trials, folds: NDArray[np.int64]) -> dict[int, Rate]:
    """LFW accuracy of each fold (n,), at the best threshold of the other folds together."""
    names = np.unique(folds)
    if len(names) < 2:
        raise DataError("the accuracy of a fold needs a threshold from another fold")
    rates = {}
    for fold in map(int, names):
        test = folds == fold
        rest = trials.subset(~test)
        threshold = best_threshold(rest.scores, rest.genuine)
        rates[fold] = _accuracy(trials.scores[test], trials.genuine[test], threshold)
    return rates


def split_accuracy(trials: Trials, splits: int = 10, seed: int = 0) -> Rate:
    """Accuracy where there is one fold only: thresholds from random halves of the people.

    The people are halved ``splits`` times; pairs within one half are judged by the best
    threshold of the pairs within the other (pairs across are left out), both ways. Halving
    keeps all genuine pairs and only half of the impostor ones, so both kinds of error are
    weighed by the shares of genuine and impostor pairs in the whole. errors and the interval
    are for as many trials as there are different pairs judged.
    """
    share = float(np.mean(trials.genuine))
    counts = np.zeros((2, 2), int)
    seen = np.zeros(len(trials.scores), bool)
    for train, test in _halves(trials, splits, seed):
        part, rest = trials.subset(train), trials.subset(test)
        threshold = _least_wrong(roc(part.scores, part.genuine), share)
        counts += _counts(rest, threshold)
        seen |= test
    count = int(seen.sum())
    value = float(counts[:, 0] / counts[:, 1] @ np.array([1 - share, share]))
    errors = round(value * count)
    low, high = clopper_pearson(errors, count)
    return Rate(value, min(low, value), max(high, value), errors, count).complement()


def _counts(trials: Trials, threshold: float) -> NDArray[np.int64]:
    """(2, 2): errors and trials in columns, impostor and genuine trials in rows."""
    rates = error_rates(trials.scores, trials.genuine, threshold)
    return np.array([(rate.errors, rate.trials) for rate in rates], dtype=np.int64)


def _halves(
    trials: Trials, splits: int, seed: int
) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """(train, test) masks of trials within random halves of the people, both directions."""
    people = trials.identities
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(splits):
        half = rng.permutation(people)[: len(people) // 2]
        claimed, probe = np.isin(trials.claimed, half), np.isin(trials.probe, half)
        pairs += [(claimed & probe, ~claimed & ~probe), (~claimed & ~probe, claimed & probe)]
    return pairs


def hter(trials: Trials, seed: int = 0) -> Rate:
    """Half total error rate, (FMR + FNMR) / 2, at a threshold from other people.

    The people are halved at random. The threshold where FMR and FNMR are nearest on the
    trials within one half is applied to the trials within the other, both ways, and the
    errors of both directions are counted together; trials across the halves are left out.
    The interval is the mean of the 97.5 % exact ones of FMR and FNMR, so at least 95 %.
    """
    counts = np.zeros((2, 2), int)
    for train, test in _halves(trials, 1, seed):
        part, rest = trials.subset(train), trials.subset(test)
        curve = roc(part.scores, part.genuine)
        near = int(np.argmin(np.abs(curve.fmr - curve.fnmr)))
        counts += _counts(rest, _midway(curve, near))
    bounds = [clopper_pearson(int(e), int(n), (1 + CONFIDENCE) / 2) for e, n in counts]
    value = float((counts[:, 0] / counts[:, 1]).mean())
    low, high = np.mean(bounds, axis=0)
    errors, total = counts.sum(axis=0)
    return Rate(value, float(low), float(high), int(errors), int(total))
