"""The figures of one set of scored trials, and scores where a sample could not be embedded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgeid.extraction import Embeddings
from edgeid.intervals import Rate
from edgeid.metrics import eer_and_min_dcf, error_rates, fnmr_at_fmr, hter
from edgeid.report import Decision, Det, ScoreReport
from edgeid.roc import Array, Trials, roc
from edgeid.runtime.errors import CalibrationError, DataError
from edgeid.runtime.score import Calibration, Kind

POINT_FMRS = (1e-2, 1e-3, 1e-4)
STORED_FMRS = (1e-2, 1e-3)
FAILED_SCORE = -1.0
"""Score of a comparison with a sample that gave no embedding: nothing can be less similar."""

Rows = NDArray[np.float32]

DEPENDENT = (
    "Comparisons share people and samples. Intervals of counted rates treat them as "
    "independent and are too narrow; those of EER and minDCF are drawn over people."
)
ONE_SESSION = (
    "Where a speaker's recordings are of one session, room and microphone give identity away "
    "and the rates are optimistic."
)
CHIMERIC = (
    "Chimeric people: each is the face of one person and the voice of another, and what the "
    "two would have in common in one person is not in these figures."
)


def measure(
    name: str,
    trials: Trials,
    kind: Kind,
    calibration: Calibration | None,
    accuracy: Rate | None = None,
) -> ScoreReport:
    """All figures of scored trials; ``kind`` says which stored thresholds apply to them."""
    genuine = int(trials.genuine.sum())
    eer, cost = eer_and_min_dcf(trials)
    return ScoreReport(
        name=name,
        genuine=genuine,
        impostors=len(trials.genuine) - genuine,
        people=len(trials.identities),
        eer=eer,
        min_dcf=cost,
        points=tuple(fnmr_at_fmr(trials.scores, trials.genuine, fmr) for fmr in POINT_FMRS),
        det=Det.of(roc(trials.scores, trials.genuine)),
        accuracy=accuracy,
        hter=or_none(hter, trials),
        decisions=_decisions(trials, kind, calibration),
    )


def or_none(figure: Callable[[Trials], Rate], trials: Trials) -> Rate | None:
    """A figure that needs halves of the people; None where a half lacks a kind of trial."""
    try:
        return figure(trials)
    except DataError:
        return None


def _decisions(trials: Trials, kind: Kind, calibration: Calibration | None) -> tuple[Decision, ...]:
    if calibration is None:
        return ()
    decisions = []
    for fmr in STORED_FMRS:
        try:
            threshold = calibration.threshold(kind, fmr)
        except CalibrationError:
            decisions.append(Decision(fmr, None, None, None))
            continue
        rates = error_rates(trials.scores, trials.genuine, threshold)
        decisions.append(Decision(fmr, threshold, *rates))
    return tuple(decisions)


def stack_templates(files: list[str], embeddings: Embeddings, who: str) -> Rows:
    """Embeddings (n, d) of the files that enrol somebody; DataError if none has one."""
    rows = [row for file in files if (row := embeddings[file]) is not None]
    if not rows:
        raise DataError(f"none of the {len(files)} files that enrol {who} gives an embedding")
    return np.stack(rows)


def score_matrix(
    templates: list[Rows],
    probes: list[Rows | None],
    kind: Kind,
    calibration: Calibration | None = None,
) -> Array:
    """Similarities (people, probes) of faces or voices, as a model scores them that is perhaps
    not calibrated; FAILED_SCORE for a probe without an embedding."""
    scores = np.full((len(templates), len(probes)), FAILED_SCORE)
    columns = [i for i, probe in enumerate(probes) if probe is not None]
    if columns:
        rows = np.stack([probe for probe in probes if probe is not None])
        scoring = calibration or Calibration()
        scores[:, columns] = scoring.similarity_matrix(kind, templates, rows)
    return scores


def count_failed(embeddings: Embeddings) -> int:
    """How many samples gave no embedding."""
    return sum(row is None for row in embeddings.values())
