"""Calibration of a model: similarity scores -> FMR curves and fusion, from embeddings.

The people must be ones the networks were not trained on and, for figures that are to be
reported, not the development people either. No set holds face and voice of the same people,
so fused trials are chimeric: a face identity is paired with a speaker at random.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeid.converters.scores.agreement import fit_agreement
from edgeid.converters.scores.fmr_curve import build_curve
from edgeid.converters.scores.fusion import FusionOptions, fit_fusion
from edgeid.converters.scores.views import Views
from edgeid.runtime.curve import FmrCurve
from edgeid.runtime.errors import CalibrationError
from edgeid.runtime.score import (
    MODALITIES,
    Agreement,
    Backend,
    Calibration,
    similarity_matrix,
)

__all__ = ["CalibrationOptions", "Comparisons", "build_curve", "calibrate"]

Array = NDArray[np.float64]
MAX_ROUNDS = 1000


@dataclass(frozen=True)
class CalibrationOptions:
    """Which trials are made.

    Attributes:
        enrolments: numbers of (images, utterances) that enrol a person; trials of all
            entries are pooled, for users differ in how much they enrol.
        probes: most samples of a person used as probes (an identity with hundreds of
            photos must not outweigh the others).
        people: most face identities and most speakers used, drawn at random.
        impostors: fused impostor comparisons wanted; pairings are added until there are
            that many.
        fusion: options of the regression; its folds are the groups of people.
    """

    enrolments: tuple[tuple[int, int], ...] = ((3, 3), (1, 1))
    probes: int = 5
    people: int = 500
    impostors: int = 100_000
    fusion: FusionOptions = field(default_factory=FusionOptions)

    def __post_init__(self) -> None:
        sizes = [n for pair in self.enrolments for n in pair]
        if not sizes or min(sizes) < 1 or min(self.probes, self.impostors) < 1 or self.people < 4:
            raise CalibrationError(f"counts must be positive and people at least 4: {self}")


@dataclass(frozen=True)
class Comparisons:
    """All probes of one modality against all people.

    Attributes:
        scores: (people, probes) similarities.
        owners: (probes,) row of the person each probe is of.
        groups: (people,) group 0..k-1 of each person.
        recorded: (probes,) whether the probe is as it was recorded.
        quality: (probes,) measure of each; NaN where there is none.
    """

    scores: Array
    owners: NDArray[np.intp]
    groups: NDArray[np.intp]
    recorded: NDArray[np.bool_]
    quality: Array

    def split(self) -> tuple[Array, Array]:
        """Genuine and impostor scores of the probes as they were recorded."""
        genuine = self.owners[None, :] == np.arange(len(self.scores))[:, None]
        return self.scores[genuine & self.recorded], self.scores[~genuine & self.recorded]


def calibrate(
    face_embeddings: Mapping[str, ArrayLike | Views],
    voice_embeddings: Mapping[str, ArrayLike | Views],
    seed: int = 0,
    options: CalibrationOptions | None = None,
    backends: Mapping[str, Backend] | None = None,
) -> Calibration:
    """Curves for face, voice and fused scores, and fusion parameters.

    Args:
        face_embeddings, voice_embeddings: identity -> (n_i, d) embeddings of calibration
            people, or views of them with their quality, on which fusion then depends where
            that helps. Either may be empty: what cannot be measured is None then.
        seed: of every random choice; equal input gives an equal calibration.
        backends: "face", "voice" -> what scores that modality in place of the cosine, learnt
            from other people. The calibration carries them to the model file.

    The agreement of templates moves similarities where that helps (``fit_agreement``, with the
    largest of ``options.enrolments``); everything else is measured on the moved ones.

    Face and voice curves: every probe against every person. Fused: identities of both
    modalities are parted into k groups; a chimeric person is a face identity and a speaker
    of the same group, so no trial crosses groups, and the scores of a group are made by
    fusion parameters fitted on the other groups. The fused curve is of these cross-fitted
    scores; the stored parameters are fitted on all trials. Its FNMRs (``fused.fnmr_at``) are
    therefore figures of held-out people.

    Chimeric trials re-use samples in several pairings: they are not independent, and the
    rule of three is optimistic for them. ``people`` in a curve says how many people there
    were (for fused: the smaller of the numbers of face identities and speakers).

    Raises CalibrationError when there are too few people or samples.
    """
    options = options or CalibrationOptions()
    rng = np.random.default_rng(seed)
    images, utterances = zip(*options.enrolments, strict=True)
    used = _checked(backends or {})
    faces, shift = _compare(face_embeddings, images, options, rng, used.face_backend)
    used = replace(used, face_agreement=shift)
    voices, shift = _compare(voice_embeddings, utterances, options, rng, used.voice_backend)
    used = replace(used, voice_agreement=shift)
    face, voice = (_single(part) if part else None for part in (faces, voices))
    if face is None or voice is None:
        return replace(used, face=face, voice=voice)
    trials = _chimeric(faces, voices, options, rng)
    fit = fit_fusion(
        trials[:, 0],
        trials[:, 1],
        trials[:, 2],
        np.repeat(trials[:, 3:4], 2, 1),
        options.fusion,
        *(None if np.isnan(part).any() else part for part in trials[:, 4:].T),
    )
    genuine = trials[:, 2] == 1
    people = min(face.people, voice.people)
    fused = build_curve(fit.held_out[genuine], fit.held_out[~genuine], people)
    return replace(used, face=face, voice=voice, fused=fused, fusion=fit.fusion)


def _checked(backends: Mapping[str, Backend]) -> Calibration:
    """A calibration with the back ends and nothing measured yet."""
    unknown = [name for name in backends if name not in MODALITIES]
    if unknown:
        raise CalibrationError(f"scoring is for {', '.join(MODALITIES)}, not {unknown[0]!r:.80}")
    return Calibration(face_backend=backends.get("face"), voice_backend=backends.get("voice"))


def _single(comparisons: list[Comparisons]) -> FmrCurve:
    """The curve of one modality, pooled over the enrolments."""
    genuine, impostor = zip(*(c.split() for c in comparisons), strict=True)
    people = max(len(c.scores) for c in comparisons)
    return build_curve(np.concatenate(genuine), np.concatenate(impostor), people)


def _compare(
    embeddings: Mapping[str, ArrayLike | Views],
    enrolments: tuple[int, ...],
    options: CalibrationOptions,
    rng: np.random.Generator,
    backend: Backend | None = None,
) -> tuple[list[Comparisons], Agreement | None]:
    """Comparisons for each enrolment, n random samples of a person against the others; and what
    agreement does to the scores."""
    if not embeddings:
        return [], None
    samples = {name: Views.of(rows) for name, rows in embeddings.items()}
    shapes = {own.embeddings.shape[::2] for own in samples.values()}
    if len(shapes) != 1:
        raise CalibrationError(
            "embeddings must be (n_i, d) arrays with the same d for everyone, and the same number "
            "of views"
        )
    folds, most = options.fusion.folds, max(enrolments) + 1
    names = [str(n) for n in rng.permutation(sorted(samples)) if len(samples[n]) > min(enrolments)]
    # People with enough samples for every enrolment come first, and groups are dealt in
    # turn: a person keeps one group in all enrolments and groups stay of equal size.
    names.sort(key=lambda name: min(len(samples[name]), most), reverse=True)
    names = names[: max(options.people, 2 * folds)]
    able = sum(len(samples[name]) >= most for name in names)
    if able < 2 * folds:
        raise CalibrationError(
            f"{able} people have {most} or more samples (to enrol and to probe with); "
            f"calibration in {folds} groups of people needs at least {2 * folds}"
        )
    chosen = [samples[name].permuted(rng) for name in names]
    agreement = fit_agreement(chosen, most - 1, options.probes, options.fusion, backend)
    return [_enrol(chosen, n, options, rng, backend, agreement) for n in enrolments], agreement


def _enrol(
    samples: list[Views],
    enrol: int,
    options: CalibrationOptions,
    rng: np.random.Generator,
    backend: Backend | None,
    agreement: Agreement | None,
) -> Comparisons:
    """The first ``enrol`` samples are the templates; those who have no more are left out."""
    samples = [own for own in samples if len(own) > enrol]
    probes: list[Array] = []
    parts: list[tuple[int, NDArray[np.bool_], Array]] = []
    for own in samples:
        views, _, size = own.embeddings.shape
        last = min(enrol + options.probes, len(own))
        # mixed, so that a poor photo may come with a good recording and the other way round
        order = rng.permutation(views * (last - enrol))
        probes.append(own.embeddings[:, enrol:last].reshape(-1, size)[order])
        parts.append((len(order), order < last - enrol, own.quality[:, enrol:last].ravel()[order]))
    templates = [own.embeddings[0, :enrol] for own in samples]
    scores = similarity_matrix(templates, np.concatenate(probes), backend, agreement)
    counts, recorded, quality = zip(*parts, strict=True)
    return Comparisons(
        scores,
        np.repeat(np.arange(len(samples)), counts),
        np.arange(len(samples)) % options.fusion.folds,
        np.concatenate(recorded),
        np.concatenate(quality),
    )


def _chimeric(
    faces: list[Comparisons],
    voices: list[Comparisons],
    options: CalibrationOptions,
    rng: np.random.Generator,
) -> Array:
    """Fused trials (n, 6), in rounds of new pairings.

    Columns: face score, voice score, label, group, quality of photo and utterance (or NaN).
    """
    blocks: list[Array] = []
    impostors = 0
    for _ in range(MAX_ROUNDS):
        for face, voice in zip(faces, voices, strict=True):
            for pairing in _pairings(face, voice, options.fusion.folds, rng):
                block = _trials_of(face, voice, pairing)
                impostors += int(np.count_nonzero(block[:, 2] == 0))
                blocks.append(block)
        if impostors >= options.impostors:
            return np.concatenate(blocks)
    raise CalibrationError(
        f"{MAX_ROUNDS} pairings give {impostors:,} of {options.impostors:,} impostor comparisons"
    )


def _pairings(
    face: Comparisons, voice: Comparisons, folds: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], int]]:
    """Chimeric people: rows of faces, rows of speakers, group.

    Within a pairing every face and every speaker occurs once, so that two different
    chimeric people share neither. The larger side of a group is used up in several pairings.
    """
    for group in range(folds):
        rows = rng.permutation(np.flatnonzero(face.groups == group))
        columns = rng.permutation(np.flatnonzero(voice.groups == group))
        size = min(len(rows), len(columns))
        longer = max(len(rows), len(columns))
        for start in range(0, longer - longer % size, size):
            yield (
                rows[start : start + size] if len(rows) > size else rng.permutation(rows),
                columns[start : start + size] if len(columns) > size else rng.permutation(columns),
                group,
            )


def _trials_of(
    face: Comparisons,
    voice: Comparisons,
    pairing: tuple[NDArray[np.intp], NDArray[np.intp], int],
) -> Array:
    """All chimeric people of a pairing against all; probe photo i goes with utterance i."""
    people, speakers, group = pairing
    photos, utterances, owners = [], [], []
    for person, (row, column) in enumerate(zip(people, speakers, strict=True)):
        a = np.flatnonzero(face.owners == row)
        b = np.flatnonzero(voice.owners == column)
        count = min(len(a), len(b))
        photos.append(a[:count])
        utterances.append(b[:count])
        owners.append(np.full(count, person))
    photo, utterance = np.concatenate(photos), np.concatenate(utterances)
    s_face = face.scores[np.ix_(people, photo)]
    s_voice = voice.scores[np.ix_(speakers, utterance)]
    genuine = np.concatenate(owners)[None, :] == np.arange(len(people))[:, None]
    q_face, q_voice = face.quality[photo], voice.quality[utterance]
    parts = (s_face, s_voice, genuine, group, q_face, q_voice)
    columns = np.broadcast_arrays(*parts)
    return np.stack([np.asarray(c, np.float64).ravel() for c in columns], axis=1)
