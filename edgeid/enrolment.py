"""What a set of samples must be before it may become somebody's templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeid.policy import Policy
from edgeid.probe import describe
from edgeid.results import Modality
from edgeid.runtime.errors import InputError
from edgeid.runtime.score import Backend, Calibration, similarity
from edgeid.templates import Vectors

# Samples of one enrolment must agree at a loose threshold: this is to catch a stranger's sample,
# not to verify, and must not send people away whose own samples differ.
AGREEMENT_FMR: dict[Modality, float] = {"face": 5e-2, "voice": 1e-1}


def check_evidence(policy: Policy, faces: int, voices: int) -> None:
    """Raise InputError where nobody could be verified with that many samples."""
    if not faces and not voices:
        raise InputError("nothing to enroll: give at least one image (images=, --image)")
    if not voices and not policy.face_alone:
        raise InputError("the policy accepts no face alone: give a recording (audio=, --audio) too")
    if not faces and not policy.voice_alone:
        raise InputError("the policy accepts no voice alone: give an image (images=, --image) too")


def check_agreement(
    calibration: Calibration, kind: Modality, vectors: Sequence[Vectors], given: Sequence[Any]
) -> None:
    """Refuse a sample that is unlike the others: it may be somebody else's.

    Args:
        calibration: of the model; its threshold at ``AGREEMENT_FMR`` must be reached.
        kind: "face" or "voice".
        vectors: one embedding (d,) a sample.
        given: the samples, for the message.

    Raises:
        InputError: the mean similarity of a sample to the others is too low; the worst is named.
        CalibrationError: the model is not calibrated for ``kind``.
    """
    if len(vectors) < 2:
        return
    agreement = mean_agreement(vectors, calibration.backend(kind))
    worst = int(agreement.argmin())
    needed = calibration.threshold(kind, AGREEMENT_FMR[kind])
    if agreement[worst] >= needed:
        return
    named = describe("image" if kind == "face" else "recording", worst + 1, given[worst])
    others = "the other" if len(vectors) == 2 else "the others"
    raise InputError(
        f"{named} does not agree with {others} (mean similarity {agreement[worst]:.2f}, "
        f"at least {needed:.2f} is needed): is it the same person? Leave it out or take it again"
    )


def mean_agreement(vectors: Sequence[Vectors], backend: Backend | None = None) -> Vectors:
    """(n,) mean similarity of each of n >= 2 embeddings (d,) to the others."""
    rows = [
        [similarity(other[None], vector, backend) for j, other in enumerate(vectors) if j != i]
        for i, vector in enumerate(vectors)
    ]
    return np.array([sum(row) / len(row) for row in rows], np.float32)
