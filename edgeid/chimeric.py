"""Evaluation on chimeric people: face, voice and both."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeid.extraction import (
    Embeddings,
    EvaluatedModel,
    Measures,
    Progress,
    embed_images,
    embed_recordings,
)
from edgeid.measurement import (
    CHIMERIC,
    DEPENDENT,
    ONE_SESSION,
    count_failed,
    measure,
    score_matrix,
    stack_templates,
)
from edgeid.protocol import Person, read_people
from edgeid.report import Report, ScoreReport
from edgeid.roc import Array, Trials
from edgeid.runtime.errors import DataError
from edgeid.runtime.fusion import QualityTerm
from edgeid.runtime.members import Members
from edgeid.runtime.score import Calibration, Kind


def evaluate_people(
    model: EvaluatedModel,
    people: str | Path,
    faces: str | Path,
    audio: str | Path,
    enroll_photos: int = 3,
    enroll_utterances: int = 3,
    *,
    crossed: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Verification of chimeric people by face, by voice and by both.

    Args:
        people: CSV with columns person, face, speaker; face and speaker name the folders of
            the person's photos and recordings.
        faces, audio: zip archives or folders.
        enroll_photos, enroll_utterances: the first files of a folder, in order of their
            names, enrol the person; the others are probes.
        crossed: every probe photo with every probe utterance of the person, instead of
            probe photo i with probe utterance i (where probes beyond the shorter list of a
            person are not used). More comparisons, though not more people or samples.

    All probes are compared with all people. The parts face and voice are over the different
    probes that occur in fused ones. Decisions are at the thresholds stored in the model. A
    photo without a face or a recording in which nothing is heard scores -1; fusion goes on
    with that score, as of a probe of usual quality. Fused figures need a calibrated model and are
    left out, with a note, without one. Raises DataError for files that are missing or malformed.
    """
    if min(enroll_photos, enroll_utterances) < 1:
        raise DataError(f"cannot enrol with {enroll_photos} photos, {enroll_utterances} utterances")
    persons = read_people(people)
    with Members(faces) as photos, Members(audio) as recordings:
        photo_names = _files(persons, photos, enroll_photos, [p.face for p in persons], people)
        speakers = [p.speaker for p in persons]
        audio_names = _files(persons, recordings, enroll_utterances, speakers, people)
        sharpness: Measures = {}
        speech: Measures = {}
        photo_rows = embed_images(
            model, photos, chain.from_iterable(photo_names), False, progress, sharpness
        )
        audio_rows = embed_recordings(
            model, recordings, chain.from_iterable(audio_names), progress, speech
        )
    known = model.calibration
    face = _Probes(persons, photo_names, enroll_photos, photo_rows, sharpness, "face", known)
    voice = _Probes(persons, audio_names, enroll_utterances, audio_rows, speech, "voice", known)
    combos = _combinations(face, voice, crossed)
    parts, notes = _people_parts(face, voice, combos, model.calibration)
    failed = count_failed(photo_rows) + count_failed(audio_rows)
    return Report("people", parts, len(photo_rows) + len(audio_rows), failed, 0, notes)


class _Probes:
    """One modality of all people: similarity of every probe to every person, and its quality
    (NaN for a probe without an embedding)."""

    def __init__(
        self,
        persons: list[Person],
        names: list[list[str]],
        enrol: int,
        embeddings: Embeddings,
        measures: Measures,
        kind: Kind,
        calibration: Calibration | None,
    ) -> None:
        self.people = np.array([p.person for p in persons])
        templates = [
            stack_templates(files[:enrol], embeddings, p.person)
            for p, files in zip(persons, names, strict=True)
        ]
        probes = [file for files in names for file in files[enrol:]]
        found = [embeddings[file] for file in probes]
        self.scores = score_matrix(templates, found, kind, calibration)
        self.quality = np.array([measures.get(file, np.nan) for file in probes])
        self.counts = [len(files) - enrol for files in names]
        self.starts = np.cumsum([0, *self.counts[:-1]])

    def trials(self, columns: NDArray[np.intp], owners: NDArray[np.intp]) -> Trials:
        return _all_against_all(self.scores[:, columns], owners, self.people)


def _all_against_all(scores: Array, owners: NDArray[np.intp], people: NDArray[np.str_]) -> Trials:
    claimed, probe = np.broadcast_arrays(people[:, None], people[owners][None, :])
    return Trials(scores.ravel(), (claimed == probe).ravel(), claimed.ravel(), probe.ravel())


def _combinations(face: _Probes, voice: _Probes, crossed: bool) -> NDArray[np.intp]:
    """Fused probes (n, 3): person, column of the photo, column of the utterance."""
    rows: list[tuple[int, int, int]] = []
    for person, (photos, utterances) in enumerate(zip(face.counts, voice.counts, strict=True)):
        a, b = int(face.starts[person]), int(voice.starts[person])
        if crossed:
            rows += [(person, a + i, b + j) for i in range(photos) for j in range(utterances)]
        else:
            rows += [(person, a + i, b + i) for i in range(min(photos, utterances))]
    return np.array(rows, dtype=np.intp)


def _people_parts(
    face: _Probes, voice: _Probes, combos: NDArray[np.intp], calibration: Calibration | None
) -> tuple[tuple[ScoreReport, ...], tuple[str, ...]]:
    """Parts and notes of the report."""
    parts = []
    kinds: tuple[tuple[Kind, _Probes, int], ...] = (("face", face, 1), ("voice", voice, 2))
    for kind, probes, column in kinds:
        used = np.unique(combos[:, [0, column]], axis=0)
        trials = probes.trials(used[:, 1], used[:, 0])
        parts.append(measure(kind, trials, kind, calibration))
    notes = (DEPENDENT, ONE_SESSION, CHIMERIC)
    if calibration is None or calibration.fusion is None:
        return tuple(parts), (*notes, "The model is not calibrated: no fused figures.")
    photos, utterances = combos[:, 1], combos[:, 2]
    scores = calibration.fusion.log_odds(
        face.scores[:, photos],
        voice.scores[:, utterances],
        _or_usual(face.quality[photos], calibration.fusion.face_quality),
        _or_usual(voice.quality[utterances], calibration.fusion.voice_quality),
    )
    trials = _all_against_all(scores, combos[:, 0], face.people)
    parts.append(measure("fused", trials, "fused", calibration))
    return tuple(parts), notes


def _or_usual(measured: Array, term: QualityTerm | None) -> Array | None:
    """Measures (n,), the usual one in the place of those that are not known."""
    return None if term is None else np.where(np.isnan(measured), term.usual, measured)


def _files(
    persons: list[Person], members: Members, enrol: int, folders: list[str], people: str | Path
) -> list[list[str]]:
    """The files of each person, more of them than enrol."""
    listing = members.folders()
    chosen = []
    for person, folder in zip(persons, folders, strict=True):
        files = listing.get(folder, [])
        if len(files) <= enrol:
            raise DataError(
                f"{people}, line {person.line}: {members.path} has {len(files)} files in a folder "
                f"{folder}; {enrol} to enrol and at least one probe are needed"
            )
        chosen.append(files)
    return chosen
