"""One score from a face's and a voice's, weighed by how good the samples were.

A blurred face says less than a sharp one, and so does a voice of one second beside one of four:
of a genuine user, too, it is less similar. Logistic regression with the quality of the probe and
its products with the scores states what remains (quality-based fusion: Fierrez-Aguilar et al.,
"Discriminative multimodal biometric authentication based on quality measures", Pattern
Recognition 38, 2005; Kryszczuk et al., EURASIP JASP 2007).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeid.runtime.curve import fields, number
from edgeid.runtime.errors import InputError, ModelFormatError

Array = NDArray[np.float64]
Quality = Mapping[str, Mapping[str, float]]

MEASURES = {"face": "sharpness", "voice": "speech"}
"""The measure of each modality: a field of ``FaceQuality`` (no unit), of ``VoiceQuality`` (s)."""
SMALLEST, LARGEST = 1e-6, 1e6  # of a measure; bounds of its logarithm, too


@dataclass(frozen=True)
class QualityTerm:
    """What the quality of a probe adds to the log-odds of one modality, a score s:

        level * (bias + weight * s),    level = log(clip(measure, low, high) / usual)

    Attributes:
        low, usual, high: the range of the measure met in calibration, and its median there.
        bias, weight: what one unit of the natural logarithm changes.
    """

    low: float
    usual: float
    high: float
    bias: float
    weight: float

    def __post_init__(self) -> None:
        if not SMALLEST <= self.low <= self.usual <= self.high <= LARGEST:
            raise ModelFormatError(
                f"quality range {self.low} .. {self.usual} .. {self.high}: must rise within "
                f"{SMALLEST:g} .. {LARGEST:g}"
            )
        if not (math.isfinite(self.bias) and math.isfinite(self.weight)):
            raise ModelFormatError(f"quality parameters are not finite: {self}")

    def levels(self, measured: ArrayLike) -> Array:
        """Logarithm of measures over the usual one, elementwise; InputError if not finite."""
        values = np.asarray(measured, np.float64)
        if not np.isfinite(values).all():
            raise InputError("a quality measure is not finite")
        return np.asarray(np.log(np.clip(values, self.low, self.high) / self.usual))

    def least(self, weight: float) -> float:
        """The least weight of the score over the range, where it is ``weight`` at the usual."""
        return weight + min(
            self.weight * math.log(self.low / self.usual),
            self.weight * math.log(self.high / self.usual),
        )

    @classmethod
    def from_dict(cls, data: object, what: str) -> QualityTerm:
        """The parameters in ``data``; ModelFormatError for anything else."""
        parts = fields(data, what, ("low", "usual", "high", "bias", "weight"))
        return cls(**{name: number(value, f"{what} {name}") for name, value in parts.items()})


@dataclass(frozen=True)
class Fusion:
    """Logistic regression over the two similarities, and over quality where it was fitted.

    The weight of a similarity is >= 0 at every quality, so a higher one can never hurt. A
    quality that is not known counts as the usual one: ``bias``, ``face`` and ``voice`` then
    say all.
    """

    bias: float
    face: float
    voice: float
    face_quality: QualityTerm | None = None
    voice_quality: QualityTerm | None = None

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.bias, self.face, self.voice))):
            raise ModelFormatError(f"fusion parameters are not finite: {self}")
        if min(self.face, self.voice) < 0 or max(self.face, self.voice) == 0:
            raise ModelFormatError(f"fusion weights must be >= 0 and not both 0: {self}")
        for weight, term in ((self.face, self.face_quality), (self.voice, self.voice_quality)):
            # what rounding leaves below zero is less than any similarity can tell
            if term is not None and not term.least(weight) >= -1e-9 * weight:
                raise ModelFormatError(f"a fusion weight is negative at some quality: {self}")

    def log_odds(
        self,
        face: ArrayLike,
        voice: ArrayLike,
        sharpness: ArrayLike | None = None,
        speech: ArrayLike | None = None,
    ) -> Array:
        """Log-odds for genuine, elementwise over arrays of face and voice similarities.

        Args:
            sharpness, speech: the measures of the probes, if they are known.

        Raises InputError for measures that are not finite.
        """
        faces, voices = np.asarray(face, np.float64), np.asarray(voice, np.float64)
        odds = self.bias + self.face * faces + self.voice * voices
        for term, scores, measured in (
            (self.face_quality, faces, sharpness),
            (self.voice_quality, voices, speech),
        ):
            if term is not None and measured is not None:
                odds = odds + term.levels(measured) * (term.bias + term.weight * scores)
        return np.asarray(odds)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: object) -> Fusion:
        """The parameters in ``data``; ModelFormatError for anything else."""
        names = ("bias", "face", "voice")
        terms = ("face_quality", "voice_quality")
        found = fields(data, "fusion", (*names, *terms), optional=True)
        fields({name: found[name] for name in found if name not in terms}, "fusion", names)
        bias, face, voice = (number(found[name], f"fusion {name}") for name in names)
        read = (QualityTerm.from_dict(found[n], n) if n in found else None for n in terms)
        return cls(bias, face, voice, *read)


def measure_of(quality: Quality | None, kind: str) -> float | None:
    """The measure of a modality in a probe's quality; None where it is not there."""
    return None if quality is None else quality.get(kind, {}).get(MEASURES[kind])
