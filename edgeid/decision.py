"""From templates and embeddings to scores, from scores to decisions.

One comparison (1:1) is decided at the false match rate (FMR) asked for. A search over N people
is N comparisons: each is decided at FMR / N, so that by the union bound the chance of taking a
stranger for anybody is at most FMR. Where the calibration cannot state so small a rate, the
smallest one it can is used, and the result says which bound holds then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeid.policy import Policy
from edgeid.results import Candidate, Modality, Reason
from edgeid.runtime.score import Calibration
from edgeid.templates import Templates, Vectors

if TYPE_CHECKING:
    from edgeid.probe import Probe

NO_TEMPLATE = Reason("no-template", "there is no template to compare this input with")
NOBODY_ENROLLED = Reason("nobody-enrolled", "nobody is enrolled")
NO_FACE_TEMPLATE = Reason("no-face-template", "no face template: decided on the voice")
NO_VOICE_TEMPLATE = Reason("no-voice-template", "no voice template: decided on the face")


@dataclass(frozen=True)
class Comparison:
    """One person's templates against one attempt; the fields mean what VerifyResult says."""

    user: str
    score: float
    modality: Modality
    face: float | None
    voice: float | None
    reasons: tuple[Reason, ...] = ()


def compare(
    user: str, templates: Templates, probe: Probe, calibration: Calibration
) -> Comparison | None:
    """Score every modality that both sides have, and fuse two; None when they share none."""
    face = _similarity(calibration, "face", templates.face, probe.face)
    voice = _similarity(calibration, "voice", templates.voice, probe.voice)
    if face is not None and voice is not None:
        fused = calibration.fuse(face, voice, probe.quality)
        return Comparison(user, fused, "fused", face, voice)
    if face is not None:
        reasons = (NO_VOICE_TEMPLATE,) if probe.voice is not None else ()
        return Comparison(user, face, "face", face, None, reasons)
    if voice is not None:
        reasons = (NO_FACE_TEMPLATE,) if probe.face is not None else ()
        return Comparison(user, voice, "voice", None, voice, reasons)
    return None


def _similarity(
    calibration: Calibration, kind: Modality, templates: Vectors, probe: Vectors | None
) -> float | None:
    if probe is None or not len(templates):
        return None
    return calibration.similarity(kind, templates, probe)


def decide(
    comparison: Comparison, threshold: float, policy: Policy
) -> tuple[Candidate, tuple[Reason, ...]]:
    """Accept or reject; the reasons of the comparison come first."""
    score, modality = comparison.score, comparison.modality
    reached, allowed = score >= threshold, policy.allows(modality)
    reasons = list(comparison.reasons)
    if not allowed:
        what = f"{modality}-alone-not-allowed"
        reasons.append(Reason(what, f"the policy does not accept a {modality} alone"))
    if not reached:
        sentence = f"{modality} score {score:.3f} is below the threshold {threshold:.3f}"
        reasons.append(Reason("score-below-threshold", sentence))
    candidate = Candidate(
        user=comparison.user,
        accepted=reached and allowed,
        score=score,
        threshold=threshold,
        modality=modality,
        face=comparison.face,
        voice=comparison.voice,
    )
    return candidate, tuple(reasons)


@dataclass(frozen=True)
class Search:
    """The most likely of several people; the fields mean what IdentifyResult says."""

    best: Candidate | None
    compared: int
    fmr_bound: float
    reasons: tuple[Reason, ...]


def search(
    people: Sequence[tuple[str, Templates]],
    probe: Probe,
    calibration: Calibration,
    policy: Policy,
    fmr: float,
) -> Search:
    """Compare with everybody and decide on the most likely person.

    Raises:
        CalibrationError: ``fmr`` itself is below what the calibration can state.
    """
    each = [compare(user, own, probe, calibration) for user, own in people]
    found = [comparison for comparison in each if comparison is not None]
    if not found:
        return Search(None, 0, fmr, (NO_TEMPLATE if people else NOBODY_ENROLLED,))
    rates = [search_fmr(calibration, item.modality, fmr, len(found)) for item in found]
    index = min(range(len(found)), key=lambda i: _unlikeliness(found[i], calibration))
    threshold = calibration.threshold(found[index].modality, rates[index])
    best, reasons = decide(found[index], threshold, policy)
    if max(rates) <= fmr / len(found):
        return Search(best, len(found), fmr, reasons)
    bound = min(1.0, sum(rates))
    raised = Reason(
        "fmr-bound-raised",
        f"over {len(found)} people the calibration supports a false match rate of {bound:.2g}, "
        f"not {fmr:.2g}: calibrate with more people, or name the user",
    )
    return Search(best, len(found), bound, (*reasons, raised))


def search_fmr(calibration: Calibration, modality: Modality, fmr: float, people: int) -> float:
    """The FMR at which one comparison of a search over ``people`` is decided."""
    smallest = calibration.curve(modality).smallest_fmr
    if fmr < smallest:
        calibration.threshold(modality, fmr)  # raises CalibrationError, which says why
    return max(fmr / people, smallest)


def _unlikeliness(comparison: Comparison, calibration: Calibration) -> tuple[float, bool, float]:
    """Sorts first the person whose score strangers reach most rarely.

    Scores of different modalities have different scales, their FMRs have one. The FMR bottoms
    out at the calibration's smallest: there both modalities count more, then the score.
    """
    rate = calibration.fmr_of(comparison.modality, comparison.score)
    return rate, comparison.modality != "fused", -comparison.score
