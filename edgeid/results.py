"""What EdgeID answers with: frozen records, each with a JSON-ready ``to_dict()``.

None of them ever holds an embedding or a template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Modality = Literal["fused", "face", "voice"]


class _Record:
    """Gives a dataclass its ``to_dict()``."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain dicts, lists, strings, numbers and None."""
        plain: dict[str, Any] = _plain(asdict(self))  # type: ignore[call-overload]
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.item()  # numpy scalars, which json does not know


@dataclass(frozen=True)
class Reason(_Record):
    """Why a decision is what it is: a stable code for programs, a sentence for people.

    Codes: ``score-below-threshold``, ``no-template``, ``no-face-template``,
    ``no-voice-template``, ``face-alone-not-allowed``, ``voice-alone-not-allowed``,
    ``nobody-enrolled``, ``fmr-bound-raised``.
    """

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class VerifyResult(_Record):
    """Is this the person?

    Attributes:
        accepted: the answer.
        user: the person claimed; without a claim the person found, None when nobody was.
        score: the score that was decided on: a similarity for one modality, log-odds for
            both; None when there was nothing to compare.
        threshold: what ``score`` had to reach; None likewise.
        fmr: false match rate that the decision was set for. Without a claim it covers the
            whole search: the chance that a person who is not enrolled is taken for somebody.
        modality: what ``score`` comes from.
        face: similarity of the face, None without a face or a face template.
        voice: similarity of the voice, None likewise.
        reasons: everything that bore on the decision; empty for a plain acceptance.
        quality: measured quality of the inputs, by modality and by measure.
        timings: milliseconds of each stage, and ``total``.
    """

    accepted: bool
    user: str | None
    score: float | None
    threshold: float | None
    fmr: float
    modality: Modality | None
    face: float | None
    voice: float | None
    reasons: tuple[Reason, ...]
    quality: Mapping[str, Mapping[str, float]]
    timings: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Candidate(_Record):
    """One enrolled person compared with the input; the fields mean what VerifyResult says."""

    user: str
    accepted: bool
    score: float
    threshold: float
    modality: Modality
    face: float | None
    voice: float | None


@dataclass(frozen=True, kw_only=True)
class IdentifyResult(_Record):
    """Who is this, if anybody?

    Attributes:
        best: the most likely person, accepted or not; None when nobody could be compared.
        compared: number of people the input was compared with.
        fmr: false match rate asked for, over the whole search.
        fmr_bound: the rate that provably holds over the whole search (at most ``compared``
            times the rate of a single comparison). It exceeds ``fmr`` when the model's
            calibration supports no rate as low as ``fmr / compared``; ``reasons`` says so.
        reasons, quality, timings: as in VerifyResult.
    """

    best: Candidate | None
    compared: int
    fmr: float
    fmr_bound: float
    reasons: tuple[Reason, ...]
    quality: Mapping[str, Mapping[str, float]]
    timings: Mapping[str, float]

    @property
    def accepted(self) -> bool:
        """True when somebody was recognised."""
        return self.best is not None and self.best.accepted

    @property
    def user(self) -> str | None:
        """The person recognised, or None for nobody."""
        return self.best.user if self.best is not None and self.best.accepted else None

    def to_dict(self) -> dict[str, Any]:
        """The fields, and ``accepted`` and ``user`` first."""
        return {"accepted": self.accepted, "user": self.user, **super().to_dict()}


@dataclass(frozen=True, kw_only=True)
class User(_Record):
    """One enrolled person: name, numbers of templates, time of enrolment (ISO 8601, UTC)."""

    name: str
    faces: int
    voices: int
    enrolled_at: str


@dataclass(frozen=True, kw_only=True)
class EnrollResult(_Record):
    """Somebody was enrolled.

    Attributes:
        user: who.
        replaced: whether an earlier enrolment was replaced.
        quality: one entry a sample, in the order given, by modality.
        timings: milliseconds of each stage, and ``total``.
    """

    user: User
    replaced: bool
    quality: Mapping[str, tuple[Mapping[str, float], ...]]
    timings: Mapping[str, float]
