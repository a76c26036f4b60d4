"""Evaluate a model on face pairs, voice trials and chimeric people.

Protocol files and data sets are the user's own or the development files; figures, intervals
and what they mean are in metrics.py, results in report.py.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from edgeid.chimeric import evaluate_people
from edgeid.extraction import (
    Embeddings,
    EvaluatedModel,
    Progress,
    embed_images,
    embed_recordings,
)
from edgeid.intervals import binomial_rate
from edgeid.measurement import (
    DEPENDENT,
    FAILED_SCORE,
    ONE_SESSION,
    Rows,
    count_failed,
    measure,
    or_none,
    score_matrix,
    stack_templates,
)
from edgeid.metrics import cross_accuracy, split_accuracy
from edgeid.protocol import Pair, VoiceTrial, read_enrolment, read_pairs, read_trials
from edgeid.report import Report, ScoreReport
from edgeid.roc import Trials, pooled
from edgeid.runtime.errors import DataError
from edgeid.runtime.members import Members
from edgeid.runtime.score import Calibration

__all__ = ["evaluate_faces", "evaluate_people", "evaluate_voices"]


def evaluate_faces(
    model: EvaluatedModel,
    pairs: str | Path,
    images: str | Path,
    aligned: bool,
    *,
    fold: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Verification of image pairs, LFW protocol.

    Args:
        pairs: CSV with columns fold, a, b, same; the folder of a file name is taken as the
            identity.
        images: zip archive or folder. Pairs of which an image is not there are left out and
            counted.
        aligned: the images are crops of 112 x 112 pixels; otherwise faces are detected and
            aligned (the largest of each photo, no quality checks). A photo without a face
            scores -1 in all its comparisons: an error in genuine pairs.
        fold: only this fold.

    The accuracy of a fold is at the best threshold of the other folds ("all": over all
    folds). With one fold only, thresholds come from 10 random halvings of its people.
    Raises DataError for files that are missing or malformed.
    """
    wanted = [p for p in read_pairs(pairs) if fold in (None, p.fold)]
    if not wanted:
        raise DataError(f"{pairs} has no fold {fold}")
    with Members(images) as members:
        present = [p for p in wanted if p.a in members.names and p.b in members.names]
        if not present:
            raise DataError(
                f"{images} has the images of none of the {len(wanted):,} pairs of {pairs}; "
                f"the first is {wanted[0].a}"
            )
        names = {name for p in present for name in (p.a, p.b)}
        embeddings = embed_images(model, members, names, aligned, progress)
    trials = _pair_trials(present, embeddings, model.calibration or Calibration())
    folds = np.array([p.fold for p in present])
    return Report(
        "faces",
        _face_parts(trials, folds, model.calibration),
        samples=len(names),
        failed=count_failed(embeddings),
        left_out=len(wanted) - len(present),
        notes=(DEPENDENT,),
    )


def _pair_trials(pairs: list[Pair], embeddings: Embeddings, scoring: Calibration) -> Trials:
    scores = np.full(len(pairs), FAILED_SCORE)
    for i, pair in enumerate(pairs):
        a, b = embeddings[pair.a], embeddings[pair.b]
        if a is not None and b is not None:
            scores[i] = scoring.similarity("face", a[None], b)
    return Trials(
        scores,
        np.array([pair.same for pair in pairs]),
        np.array([_identity(pair.a) for pair in pairs]),
        np.array([_identity(pair.b) for pair in pairs]),
    )


def _identity(name: str) -> str:
    path = PurePosixPath(name)
    return path.parent.name or path.stem


def _face_parts(
    trials: Trials, folds: NDArray[np.int64], calibration: Calibration | None
) -> tuple[ScoreReport, ...]:
    numbers = [int(n) for n in np.unique(folds)]
    if len(numbers) == 1:
        accuracy = or_none(split_accuracy, trials)
        return (measure(f"fold {numbers[0]}", trials, "face", calibration, accuracy),)
    rates = cross_accuracy(trials, folds)
    errors = sum(rate.errors for rate in rates.values())
    total = binomial_rate(errors, len(folds)).complement()
    parts = [measure("all folds", trials, "face", calibration, total)]
    for number in numbers:
        part = trials.subset(folds == number)
        parts.append(measure(f"fold {number}", part, "face", calibration, rates[number]))
    return tuple(parts)


def evaluate_voices(
    model: EvaluatedModel,
    enroll: str | Path,
    trials: str | Path,
    audio: str | Path,
    *,
    progress: Progress | None = None,
) -> Report:
    """Verification of speakers, one part of the report for each set, and one of all together.

    Args:
        enroll: CSV with columns speaker, file: the templates of each speaker.
        trials: CSV with columns set, claimed, file, target. A file is taken to be of the
            speaker it is a target trial of, or else of the speaker its folder names.
        audio: zip archive or folder with all these files.

    Every recording is scored, however short; one in which nothing is heard scores -1.
    Raises DataError for files that are missing or malformed.
    """
    enrolment = read_enrolment(enroll)
    rows = read_trials(trials, enrolment)
    claimed = {row.claimed for row in rows}
    names = {row.file for row in rows} | {f for s in claimed for f in enrolment[s]}
    with Members(audio) as members:
        missing = sorted(names - members.names)
        if missing:
            raise DataError(
                f"{audio} lacks {len(missing):,} of {len(names):,} recordings: {missing[0]}"
                + _line_of(rows, missing[0], trials)
            )
        embeddings = embed_recordings(model, members, names, progress)
    templates = {s: stack_templates(enrolment[s], embeddings, s) for s in sorted(claimed)}
    speaker_of = {row.file: row.claimed for row in rows if row.target}
    sets = {}
    for name in sorted({row.set for row in rows}):
        part = [row for row in rows if row.set == name]
        sets[name] = _voice_trials(part, templates, embeddings, speaker_of, model.calibration)
    if len(sets) > 1:  # with one threshold for all
        sets["all sets"] = pooled(list(sets.values()))
    parts = [measure(name, scored, "voice", model.calibration) for name, scored in sets.items()]
    return Report(
        "voices", tuple(parts), len(names), count_failed(embeddings), 0, (DEPENDENT, ONE_SESSION)
    )


def _line_of(rows: list[VoiceTrial], name: str, trials: str | Path) -> str:
    line = next((row.line for row in rows if row.file == name), None)
    return "" if line is None else f" ({trials}, line {line})"


def _voice_trials(
    rows: list[VoiceTrial],
    templates: dict[str, Rows],
    embeddings: Embeddings,
    speaker_of: dict[str, str],
    calibration: Calibration | None,
) -> Trials:
    speakers = sorted({row.claimed for row in rows})
    files = sorted({row.file for row in rows})
    probes = [embeddings[f] for f in files]
    scores = score_matrix([templates[s] for s in speakers], probes, "voice", calibration)
    row_of = {speaker: i for i, speaker in enumerate(speakers)}
    column_of = {file: i for i, file in enumerate(files)}
    return Trials(
        np.array([scores[row_of[r.claimed], column_of[r.file]] for r in rows]),
        np.array([r.target for r in rows]),
        np.array([r.claimed for r in rows]),
        np.array([speaker_of.get(r.file, _identity(r.file)) for r in rows]),
    )
