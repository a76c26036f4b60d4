"""The people whose faces and voices a conversion works with, parted into two groups.

Passes train on the first group; the second, of whom no network and no pass has seen
anything, gives accuracies, thresholds and score fusion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeid.converters.recipe import Fresh
from edgeid.converters.training.faces import Crops, FaceSet, read_faces
from edgeid.converters.training.speaking_styles import Styles
from edgeid.converters.training.speech import SpeechSampler, SpeechSet, read_speech, read_training
from edgeid.runtime.audio import Samples
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.errors import DataError
from edgeid.runtime.face import FaceSpec, network_input
from edgeid.runtime.model import FACE, VOICE
from edgeid.runtime.voice import VoiceSpec, cut_windows

Labels = NDArray[np.int64]
ORDER = 1  # seed
STRENGTH = 0.5  # of what is done to speech beside that which was recorded
UNLABELLED_SHARE = 10  # one sample in so many is held out where nobody is named


@dataclass(frozen=True)
class NetworkInputs:
    """What the networks take, and who it shows.

    Attributes:
        samples: entry -> float32 (N, *shape).
        labels: entry -> int64 (N,), for the entries whose people are named.
    """

    samples: dict[str, FloatArray]
    labels: dict[str, Labels]


@dataclass(frozen=True)
class People:
    """Faces and voices of people; either may be missing.

    Attributes:
        faces, speech: those that passes may learn from, and those that are held out.
        face, voice: how they become inputs of the networks.
        sampler: of the speech that passes may learn from, in other styles, rooms and lengths.
    """

    faces: tuple[FaceSet, FaceSet] | None
    speech: tuple[SpeechSet, SpeechSet] | None
    face: FaceSpec
    voice: VoiceSpec
    sampler: SpeechSampler | None = None

    def training(self, most: int) -> NetworkInputs:
        """Inputs of the first group, at most so many of an entry, drawn evenly, in any order.

        Files lie in the order of sets and people. Passes that look at a few samples take the
        first, which have to be of as many people as may be.
        """
        found = self._inputs(0, most)
        rng = np.random.default_rng(ORDER)
        order = {entry: rng.permutation(len(rows)) for entry, rows in found.samples.items()}
        return NetworkInputs(
            {entry: rows[order[entry]] for entry, rows in found.samples.items()},
            {entry: labels[order[entry]] for entry, labels in found.labels.items()},
        )

    def fresh(self) -> dict[str, Fresh]:
        """Further inputs without end, by entry: speech that is altered whenever it is drawn."""
        return {} if self.sampler is None else {VOICE: self.sampler.windows}

    def with_training_sets(self, data: Path) -> People:
        """The same, passes hearing words as well as sentences, and noise, from a data folder."""
        speech, noise = read_training(data, self.voice)
        return replace(self, sampler=_sampler(speech, self.voice, noise))

    def held_out(self, most: int) -> NetworkInputs:
        """Inputs of the second group."""
        return self._inputs(1, most)

    def _inputs(self, group: int, most: int) -> NetworkInputs:
        samples: dict[str, FloatArray] = {}
        labels: dict[str, Labels] = {}
        if self.faces is not None:
            faces = self.faces[group]
            chosen = _even(len(faces.crops), most)
            samples[FACE] = network_input(faces.crops[chosen], self.face)
            if faces.labelled:
                labels[FACE] = faces.labels[chosen]
        if self.speech is not None:
            samples[VOICE], spoken = _windows(self.speech[group], self.voice, most)
            if self.speech[group].labelled:
                labels[VOICE] = spoken
        return NetworkInputs(samples, labels)


def read_people(
    faces: Path | None,
    voices: Sequence[Path],
    face: FaceSpec,
    voice: VoiceSpec,
    read_photo: Callable[[bytes], Crops] | None = None,
) -> People:
    """Read folders or zip archives; see ``read_faces`` and ``read_speech``.

    Where people are named (by the folders that their files lie in), one in ten of them is
    held out; where nobody is, one file in ten.

    Raises:
        DataError: a source is missing, empty, or too small to hold anybody out.
        AudioError: a recording cannot be decoded.
    """
    speech = _parted_speech(read_speech(voices, voice)) if voices else None
    return People(
        _parted_faces(read_faces(faces, read_photo)) if faces is not None else None,
        speech,
        face,
        voice,
        _sampler(speech[0], voice) if speech else None,
    )


def _sampler(speech: SpeechSet, spec: VoiceSpec, noise: tuple[Samples, ...] = ()) -> SpeechSampler:
    return SpeechSampler(speech, noise, spec, Styles(share=1.0), STRENGTH)


def _parted_faces(faces: FaceSet) -> tuple[FaceSet, FaceSet]:
    if faces.labelled:
        parts = faces.split()
    else:
        held = np.arange(len(faces.crops)) % UNLABELLED_SHARE == 0
        parts = faces.subset(~held), faces.subset(held)
    if not all(len(part.crops) for part in parts):
        raise _too_few(f"{len(faces.crops)} faces of {len(faces.identities)} people")
    return parts


def _parted_speech(speech: SpeechSet) -> tuple[SpeechSet, SpeechSet]:
    if speech.labelled:
        parts = speech.split()
    else:
        (utterances,) = speech.utterances
        held = utterances[::UNLABELLED_SHARE]
        rest = tuple(u for i, u in enumerate(utterances) if i % UNLABELLED_SHARE)
        parts = SpeechSet(speech.speakers, (rest,)), SpeechSet(speech.speakers, (held,))
    if not all(any(part.utterances) for part in parts):
        raise _too_few(f"recordings of {len(speech.speakers)} speakers")
    return parts


def _too_few(found: str) -> DataError:
    return DataError(f"{found}: too few to hold one in ten out for measuring; give more")


def _windows(speech: SpeechSet, spec: VoiceSpec, most: int) -> tuple[FloatArray, Labels]:
    """Log-mel windows of utterances that are drawn evenly, and their speakers."""
    spoken = [(label, u) for label, group in enumerate(speech.utterances) for u in group]
    each = max(1, 2 * most // len(spoken))  # so that one long recording does not crowd out others
    windows: list[FloatArray] = []
    labels: list[int] = []
    for index in _even(len(spoken), most):
        label, utterance = spoken[index]
        cut = cut_windows(utterance, spec)
        cut = cut[_even(len(cut), each)]
        windows.append(cut)
        labels += [label] * len(cut)
    chosen = _even(len(labels), most)
    return np.concatenate(windows)[chosen], np.array(labels, np.int64)[chosen]


def _even(count: int, most: int) -> NDArray[np.intp]:
    """Indices of at most ``most`` of ``count`` things, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.intp)
