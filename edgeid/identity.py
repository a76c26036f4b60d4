"""EdgeID: enroll people, verify who they say they are, find out who they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from edgeid.decision import NO_TEMPLATE, compare, decide, search
from edgeid.enrolment import check_agreement, check_evidence
from edgeid.fingerprint import model_fingerprint
from edgeid.keys import MasterKey
from edgeid.policy import Policy
from edgeid.probe import Embedder, Probe, Reader, Stopwatch, as_images, as_recordings
from edgeid.results import EnrollResult, IdentifyResult, Modality, User, VerifyResult
from edgeid.runtime.errors import CalibrationError
from edgeid.store import TemplateStore, open_store
from edgeid.templates import Templates, check_name

if TYPE_CHECKING:
    from edgeid.runtime.audio import Recording
    from edgeid.runtime.image import ImageSource


class EdgeID:
    """Verification of people by face and voice, offline.

        eid = EdgeID()
        eid.enroll("ann", images=["ann1.jpg", "ann2.jpg"], audio=["ann1.wav"])
        result = eid.verify("door.jpg", "door.wav", user="ann")
        result.accepted

    Images are paths, bytes, or uint8 arrays as OpenCV gives them (grey, or BGR); recordings are
    paths, bytes, or ``(samples, rate)``.

    Args:
        model: ``"default"``, the path of an .edgeid file, or a model that is loaded already.
        store: a store, or the path of one; default ``templates.db`` in EdgeID's folder. A store
            that is handed in is not closed by ``close``.
        fmr: false match rate that decisions are set for, in (0, 1).
        engine: what runs the network: "auto", "onnxruntime" or "reference".
        policy: what a decision may rest on.
        key: master key of the store (or its 32 bytes); default the one in EdgeID's folder,
            made on first use.
        detector: None finds faces with the model's own network, or with OpenCV's Haar cascade
            where the model has none; "haar" with that; a path with that YuNet model.

    Raises:
        ModelError, EngineError: the model cannot be used.
        CalibrationError: the model's calibration cannot state ``fmr`` for any kind of score.
        StoreError: the store or the key cannot be used.
    """

    def __init__(
        self,
        model: str | Path | Embedder = "default",
        store: str | Path | TemplateStore | None = None,
        fmr: float = 1e-3,
        engine: str = "auto",
        policy: Policy | None = None,
        key: MasterKey | bytes | None = None,
        detector: str | Path | None = None,
    ) -> None:
        self.fmr = fmr
        self.policy = Policy() if policy is None else policy
        self.model = _load(model, engine, detector)
        self._fingerprint = model_fingerprint(self.model.file)
        self._check_fmr()
        self._owns_store = not isinstance(store, TemplateStore)
        self.store = store if isinstance(store, TemplateStore) else open_store(store, key)

    def enroll(
        self,
        user: str,
        images: Sequence[ImageSource] = (),
        audio: Sequence[Recording] = (),
        replace: bool = False,
    ) -> EnrollResult:
        """Store a person's templates; several samples of each kind make decisions better.

        All samples are read before anything is stored, and stored together or not at all.

        Args:
            user: 1 to 128 printable characters.
            images: one face each.
            audio: one speaker each, a sentence or more.
            replace: take the place of an earlier enrolment.

        Raises:
            InputError: too few samples for the policy, or a sample that disagrees with the
                others (somebody else's); ImageError, AudioError, QualityError: a sample that
                cannot be used. The message names the sample.
            DuplicateUserError: enrolled already, and ``replace`` is False.
            StoreError: nothing was stored.
        """
        user = check_name(user)
        faces, voices = as_images(images), as_recordings(audio)
        check_evidence(self.policy, len(faces), len(voices))
        watch = Stopwatch()
        reader = Reader(self.model, watch)
        with watch.stage("store"):
            replaced = user in self.store
            if not replace:
                self.store.require_absent(user)
        face_vectors, face_quality = reader.faces(faces)
        voice_vectors, voice_quality = reader.voices(voices)
        with watch.stage("compare"):
            check_agreement(self.model.calibration, "face", face_vectors, faces)
            check_agreement(self.model.calibration, "voice", voice_vectors, voices)
        vectors = {"face": face_vectors, "voice": voice_vectors}
        templates = Templates(**{kind: np.stack(own) for kind, own in vectors.items() if own})
        with watch.stage("store"):
            stored = self.store.enroll(user, templates, self._fingerprint, replace=replace)
        return EnrollResult(
            user=stored,
            replaced=replaced,
            quality={"face": face_quality, "voice": voice_quality},
            timings=watch.read(),
        )

    def verify(
        self,
        image: ImageSource | None = None,
        audio: Recording | None = None,
        user: str | None = None,
    ) -> VerifyResult:
        """Is this ``user``? Without ``user``: is this anybody who is enrolled?

        Raises:
            InputError: neither image nor recording, or one that cannot be used (ImageError,
                AudioError, QualityError).
            UnknownUserError: ``user`` is not enrolled.
            CalibrationError: the calibration cannot state the false match rate asked for.
            StoreError: the store cannot be read, or was made with another model.
        """
        watch = Stopwatch()
        if user is None:
            return _as_verification(self._identify(image, audio, watch))
        user = check_name(user)
        with watch.stage("store"):
            templates = self.store.templates(user, self._fingerprint)
        probe = Reader(self.model, watch).probe(image, audio)
        with watch.stage("compare"):
            comparison = compare(user, templates, probe, self.model.calibration)
            if comparison is None:
                return self._nothing_compared(user, probe, watch)
            threshold = self.model.calibration.threshold(comparison.modality, self.fmr)
            candidate, reasons = decide(comparison, threshold, self.policy)
        return VerifyResult(
            **vars(candidate),
            fmr=self.fmr,
            reasons=reasons,
            quality=probe.quality,
            timings=watch.read(),
        )

    def identify(
        self, image: ImageSource | None = None, audio: Recording | None = None
    ) -> IdentifyResult:
        """Who is this? The most likely person of all enrolled, or nobody.

        The false match rate holds for the whole search (see ``IdentifyResult.fmr_bound``).
        Raises as ``verify`` does.
        """
        return self._identify(image, audio, Stopwatch())

    def list(self) -> tuple[User, ...]:
        """Everybody enrolled, by name."""
        return self.store.users()

    def remove(self, user: str) -> User:
        """Delete a person and all their templates. Raises UnknownUserError."""
        return self.store.remove(user)

    def close(self) -> None:
        """Close the store, unless it was handed in."""
        if self._owns_store:
            self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _identify(
        self, image: ImageSource | None, audio: Recording | None, watch: Stopwatch
    ) -> IdentifyResult:
        probe = Reader(self.model, watch).probe(image, audio)
        with watch.stage("store"):
            people = self.store.everyone(self._fingerprint)
        with watch.stage("compare"):
            found = search(people, probe, self.model.calibration, self.policy, self.fmr)
        return IdentifyResult(
            best=found.best,
            compared=found.compared,
            fmr=self.fmr,
            fmr_bound=found.fmr_bound,
            reasons=found.reasons,
            quality=probe.quality,
            timings=watch.read(),
        )

    def _nothing_compared(self, user: str, probe: Probe, watch: Stopwatch) -> VerifyResult:
        return VerifyResult(
            accepted=False,
            user=user,
            score=None,
            threshold=None,
            fmr=self.fmr,
            modality=None,
            face=None,
            voice=None,
            reasons=(NO_TEMPLATE,),
            quality=probe.quality,
            timings=watch.read(),
        )

    def _check_fmr(self) -> None:
        """Refuse at once a rate at which every later decision would fail."""
        if isinstance(self.fmr, bool) or not isinstance(self.fmr, int | float):
            raise CalibrationError(f"fmr is a number between 0 and 1, not {self.fmr!r:.80}")
        kinds: tuple[Modality, ...] = ("face", "voice", "fused")
        problem: CalibrationError | None = None
        for kind in kinds:
            try:
                self.model.calibration.threshold(kind, self.fmr)
                return
            except CalibrationError as error:
                problem = problem or error
        if problem is not None:
            raise problem


def _load(model: str | Path | Embedder, engine: str, detector: str | Path | None) -> Embedder:
    if not isinstance(model, str | Path):
        return model
    from edgeid.runtime.model import Model

    return Model.load(model, engine=engine, detector=detector)


def _as_verification(found: IdentifyResult) -> VerifyResult:
    best = found.best
    return VerifyResult(
        accepted=found.accepted,
        user=found.user,
        score=best.score if best else None,
        threshold=best.threshold if best else None,
        fmr=found.fmr_bound,
        modality=best.modality if best else None,
        face=best.face if best else None,
        voice=best.voice if best else None,
        reasons=found.reasons,
        quality=found.quality,
        timings=found.timings,
    )
