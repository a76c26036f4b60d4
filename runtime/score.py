"""Scores and what they mean: template similarity, score fusion, score -> false match rate.

Two embeddings are compared by their cosine or, where the model file holds one for the
modality, by a scoring back end (scoring_backend.py); how much the templates agree may move what
comes out (agreement.py). A score alone says nothing; a model file therefore carries, for each
kind of score (face, voice, fused), the false match rate (FMR) measured on impostor comparisons
of people who took no part in training, and thresholds are asked for by FMR (curve.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeid.runtime.agreement import Agreement, agreement_of
from edgeid.runtime.curve import FmrCurve, fields
from edgeid.runtime.errors import CalibrationError, InputError, ModelFormatError
from edgeid.runtime.fusion import Fusion, Quality, measure_of
from edgeid.runtime.scoring_backend import LOWEST_SCORE, Backend

__all__ = [
    "Agreement",
    "Backend",
    "Calibration",
    "FmrCurve",
    "Fusion",
    "Kind",
    "centroids_of",
    "similarity",
    "similarity_matrix",
]

Kind = Literal["face", "voice", "fused"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MODALITIES: tuple[Kind, ...] = ("face", "voice")


def similarity(
    templates: ArrayLike,
    probe: ArrayLike,
    backend: Backend | None = None,
    agreement: Agreement | None = None,
) -> float:
    """Similarity of a probe (d,) to the templates (n, d) of one person.

    The cosine to the centroid of the L2-normalised templates, which averages noise out; it
    lies in [-1, 1]. A back end's score takes the place of the cosine; that is at least -1,
    too, and seldom above 1. So it is with what ``agreement`` makes of either.

    Raises InputError for other shapes and for values that are not finite.
    """
    vector = np.asarray(probe)
    if vector.ndim != 1:
        raise InputError(f"the probe must be one embedding (d,), got shape {vector.shape}")
    return float(similarity_matrix([templates], vector[None, :], backend, agreement)[0, 0])


def similarity_matrix(
    galleries: Sequence[ArrayLike],
    probes: ArrayLike,
    backend: Backend | None = None,
    agreement: Agreement | None = None,
) -> NDArray[np.float64]:
    """Similarities (people, q) of probes (q, d) to people, each a set of templates (n_i, d).

    Entry (i, j) is ``similarity(galleries[i], probes[j], backend, agreement)``.
    """
    rows = [np.asarray(templates, dtype=np.float64) for templates in galleries]
    columns = np.asarray(probes, dtype=np.float64)
    if not rows or columns.ndim != 2 or not columns.shape[1]:
        raise InputError(f"nothing to compare: {len(rows)} people, probes {columns.shape}")
    for templates in rows:
        if templates.ndim != 2 or not len(templates) or templates.shape[1] != columns.shape[1]:
            raise InputError(
                f"templates {templates.shape} do not fit probes {columns.shape}: "
                "expected (n, d) with n >= 1 against (q, d)"
            )
    centroids = centroids_of(rows)
    compare = _cosines if backend is None else backend.scores
    scores = np.asarray(compare(_normalised(centroids), _normalised(columns)))
    if agreement is None:
        return scores
    counts = [len(templates) for templates in rows]
    shifts = agreement.shifts(agreement_of(centroids, counts), counts)
    return np.maximum(scores - shifts[:, None], LOWEST_SCORE)


def centroids_of(galleries: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """(people, d) mean of the L2-normalised templates (n_i, d) of each."""
    rows = (np.asarray(templates, np.float64) for templates in galleries)
    return np.stack([_normalised(templates).mean(axis=0) for templates in rows])


def _cosines(rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(rows @ columns.T, -1.0, 1.0)


def _normalised(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(rows).all():
        raise InputError("an embedding holds values that are not finite")
    # An all-zero row has no direction: it stays zero and is similar (0) to nothing.
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 1e-12, lengths, 1.0)


@dataclass(frozen=True)
class Calibration:
    """How one model scores, and what its scores mean.

    A part that was not measured is None; a modality without a back end is scored by cosine, and
    one without agreement whatever templates do. The curves and the fusion are of these scores.
    """

    face: FmrCurve | None = None
    voice: FmrCurve | None = None
    fused: FmrCurve | None = None
    fusion: Fusion | None = None
    face_backend: Backend | None = None
    voice_backend: Backend | None = None
    face_agreement: Agreement | None = None
    voice_agreement: Agreement | None = None

    def __post_init__(self) -> None:
        if (self.fused is None) != (self.fusion is None):
            raise ModelFormatError("a fused curve and fusion parameters only make sense together")

    def curve(self, kind: Kind) -> FmrCurve:
        """The curve of one kind of score; CalibrationError if the model has none."""
        if kind not in KINDS:
            raise CalibrationError(f"no such kind of score: {kind!r}; there are {', '.join(KINDS)}")
        curve: FmrCurve | None = getattr(self, kind)
        if curve is None:
            raise CalibrationError(f"the model is not calibrated for {kind} scores; calibrate it")
        return curve

    def backend(self, kind: Kind) -> Backend | None:
        """What scores ``kind``; None: the cosine."""
        if kind not in MODALITIES:
            raise CalibrationError(f"embeddings are of a face or a voice, not {kind!r}")
        return self.face_backend if kind == "face" else self.voice_backend

    def agreement(self, kind: Kind) -> Agreement | None:
        """What the agreement of templates does to ``kind`` scores; None: nothing."""
        if kind not in MODALITIES:
            raise CalibrationError(f"templates are of a face or a voice, not {kind!r}")
        return self.face_agreement if kind == "face" else self.voice_agreement

    def similarity(self, kind: Kind, templates: ArrayLike, probe: ArrayLike) -> float:
        """``similarity`` of a face or a voice, as this model scores it."""
        return similarity(templates, probe, self.backend(kind), self.agreement(kind))

    def similarity_matrix(
        self, kind: Kind, galleries: Sequence[ArrayLike], probes: ArrayLike
    ) -> NDArray[np.float64]:
        """``similarity_matrix`` of faces or voices, as this model scores them."""
        return similarity_matrix(galleries, probes, self.backend(kind), self.agreement(kind))

    def threshold(self, kind: Kind, fmr: float) -> float:
        """Threshold for ``kind`` scores at which the observed FMR is at most ``fmr``."""
        return self.curve(kind).threshold(fmr)

    def fmr_of(self, kind: Kind, score: float) -> float:
        """FMR if ``score`` were the threshold, not below 3/impostors."""
        return self.curve(kind).fmr_of(score)

    def fuse(self, face_score: float, voice_score: float, quality: Quality | None = None) -> float:
        """Fused score (log-odds) of a face and a voice similarity.

        Args:
            quality: of the probe, by modality and field, as a front end measured it; what is
                not there counts as usual.

        Raises:
            CalibrationError: the model has no fusion.
            InputError: a score or a quality is not finite.
        """
        if self.fusion is None:
            raise CalibrationError("the model is not calibrated for fused scores; calibrate it")
        if not (math.isfinite(face_score) and math.isfinite(voice_score)):
            raise InputError(f"scores are not finite: face {face_score}, voice {voice_score}")
        measures = (measure_of(quality, kind) for kind in MODALITIES)
        return float(self.fusion.log_odds(face_score, voice_score, *measures))

    def to_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name) for name in (*KINDS, "fusion")}
        data = {name: part.to_dict() for name, part in parts.items() if part is not None}
        for name, of in (("scoring", self.backend), ("agreement", self.agreement)):
            found = {kind: part.to_dict() for kind in MODALITIES if (part := of(kind)) is not None}
            data |= {name: found} if found else {}
        return data

    @classmethod
    def from_dict(cls, data: object) -> Calibration:
        """Read what ``to_dict`` wrote; a missing part was not measured.

        Raises ModelFormatError for unknown names and for values that cannot be.
        """
        names = (*KINDS, "fusion", "scoring", "agreement")
        parts = fields(data, "calibration", names, optional=True)
        curves: dict[str, FmrCurve] = {
            kind: FmrCurve.from_dict(parts[kind]) for kind in KINDS if kind in parts
        }
        fusion = Fusion.from_dict(parts["fusion"]) if "fusion" in parts else None
        scoring, agreements = (
            fields(parts.get(name, {}), name, MODALITIES, optional=True)
            for name in ("scoring", "agreement")
        )
        backends = {kind: Backend.from_dict(item) for kind, item in scoring.items()}
        shifts = {kind: Agreement.from_dict(item) for kind, item in agreements.items()}
        return cls(
            **curves,
            fusion=fusion,
            face_backend=backends.get("face"),
            voice_backend=backends.get("voice"),
            face_agreement=shifts.get("face"),
            voice_agreement=shifts.get("voice"),
        )
