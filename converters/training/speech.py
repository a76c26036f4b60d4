"""Speech for training: loading, splitting, augmenting, and log-mel by the runtime's own code."""

from __future__ import annotations

import math
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgeid.converters.training.acoustics import (
    band_limit,
    colour,
    fill,
    mask,
    mix,
    play,
    reverberate,
    shorten,
)
from edgeid.converters.training.faces import is_calibration
from edgeid.converters.training.speaking_styles import Styles, restyle
from edgeid.runtime.audio import Samples, load_audio, resample
from edgeid.runtime.errors import DataError
from edgeid.runtime.logmel import decibels, power_spectrum
from edgeid.runtime.members import Members
from edgeid.runtime.voice import VoiceSpec, keep_speech, normalise_windows, speech_activity

# The others make new speakers of every speaker: pitch and vocal tract move together.
SPEEDS = (1.0, 0.9, 1.1, 0.8, 1.2)
SPEED_SHARES = (0.4, 0.15, 0.15, 0.15, 0.15)
SHORTEST = 0.2  # seconds of speech an utterance must have to be trained on
WORD_SHARE, SHORTEST_WORD = 0.3, 0.35  # of stretches cut to a word; seconds, at least
TOGETHER = 64  # windows that are computed at once


@dataclass(frozen=True)
class SpeechSet:
    """Trimmed utterances of every speaker, float32 at the model's rate."""

    speakers: tuple[str, ...]
    utterances: tuple[tuple[Samples, ...], ...]

    @property
    def labelled(self) -> bool:
        """Whether it says who speaks: recordings of one folder are nobody's in particular."""
        return len(self.speakers) > 1

    def split(self) -> tuple[SpeechSet, SpeechSet]:
        """Training speakers and calibration speakers; nobody is in both."""
        parts = []
        for wanted in (False, True):
            keep = [i for i, name in enumerate(self.speakers) if is_calibration(name) == wanted]
            parts.append(
                SpeechSet(
                    tuple(self.speakers[i] for i in keep), tuple(self.utterances[i] for i in keep)
                )
            )
        return parts[0], parts[1]

    def at_all_speeds(self) -> SpeechSet:
        """Everybody at every speed, in the order of a ``SpeechSampler``'s classes."""
        return SpeechSet(
            tuple(f"{name} x {speed}" for speed in SPEEDS for name in self.speakers),
            tuple(
                tuple(play(u, speed) for u in group)
                for speed in SPEEDS
                for group in self.utterances
            ),
        )

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """How often to draw each speaker: by the square root of the speech there is.

        So it is among the sets (``set/speaker``), and among the speakers of each: a set of few
        people who say much, or say it in anger and in joy, has its part.
        """
        seconds = np.array([sum(map(len, group)) for group in self.utterances], np.float64)
        _, sets = np.unique([n.rpartition("/")[0] for n in self.speakers], return_inverse=True)
        roots = np.sqrt(seconds)
        weights = roots * (np.sqrt(np.bincount(sets, seconds)) / np.bincount(sets, roots))[sets]
        return np.asarray(weights / weights.sum(), np.float64)


def read_speech(sources: Sequence[Path], spec: VoiceSpec) -> SpeechSet:
    """The speech in the recordings of folders or zip archives.

    The folder that a recording lies in is who speaks (``[set/]speaker/file.ogg``).

    Raises:
        DataError: a source is missing, or there is no speech.
        AudioError: a file cannot be decoded.
    """
    groups: dict[str, list[Samples]] = defaultdict(list)
    for source in sources:
        with Members(source) as members:
            for name in tqdm(sorted(members.names), desc=source.stem, unit="file", disable=None):
                samples = resample(*load_audio(members.read(name)), spec.rate)
                speech = keep_speech(samples, speech_activity(samples, spec)[0], spec)
                if len(speech) >= SHORTEST * spec.rate:
                    groups[name.rpartition("/")[0]].append(speech)
    if not groups:
        raise DataError(f"no speech in {', '.join(map(str, sources))}")
    speakers = tuple(sorted(groups))
    return SpeechSet(speakers, tuple(tuple(groups[name]) for name in speakers))


def read_noise(archive: Path, spec: VoiceSpec) -> tuple[Samples, ...]:
    """Noise clips at the model's rate, each at least one second and not silent."""
    with zipfile.ZipFile(archive) as members:
        clips = [
            resample(*load_audio(members.read(name)), spec.rate)
            for name in sorted(members.namelist())
            if not name.endswith("/")
        ]
    return tuple(c for c in clips if len(c) >= spec.rate and np.abs(c).max() > 1e-3)


def read_training(data: Path, spec: VoiceSpec) -> tuple[SpeechSet, tuple[Samples, ...]]:
    """The training speakers of a folder of data sets, and its noise."""
    folder = data / "speech"
    archives = [folder / "train_sentences.zip", folder / "train_words.zip"]
    return read_speech(archives, spec).split()[0], read_noise(folder / "noise.zip", spec)


@dataclass(frozen=True)
class SpeechBatch:
    """What ``SpeechSampler.draw`` gives; N windows.

    Attributes:
        windows: network input (N, 1, frames, mels).
        classes: (N,) whole numbers: speakers times speeds.
        utterances: (N,) of the speaker, the one that each window begins with.
    """

    windows: NDArray[np.float32]
    classes: NDArray[np.int64]
    utterances: NDArray[np.int64]


@dataclass(frozen=True)
class SpeechSampler:
    """Draws augmented training windows; ``draw`` depends on its generator alone.

    Attributes:
        strength: share of the usual chance of each augmentation, 0..1.
    """

    speech: SpeechSet
    noise: tuple[Samples, ...]
    spec: VoiceSpec
    styles: Styles = field(default_factory=Styles)
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise DataError(f"the strength of augmentation lies in 0..1, got {self.strength}")

    @property
    def classes(self) -> int:
        """Speakers times speeds."""
        return len(self.speech.speakers) * len(SPEEDS)

    def draw(self, count: int, rng: np.random.Generator) -> SpeechBatch:
        """``count`` augmented windows."""
        speakers = rng.choice(len(self.speech.speakers), count, p=self.speech.weights)
        speeds = rng.choice(len(SPEEDS), count, p=SPEED_SHARES)
        utterances = [int(rng.integers(len(self.speech.utterances[s]))) for s in speakers]
        waves = np.stack(
            [
                self._augment(self._take(speaker, first, SPEEDS[speed], rng), rng)
                for speaker, first, speed in zip(speakers, utterances, speeds, strict=True)
            ]
        )
        classes = speakers + speeds * len(self.speech.speakers)
        return SpeechBatch(self.hear(waves, rng), classes, np.array(utterances))

    def stretch(self, rng: np.random.Generator) -> Samples:
        """As much augmented speech as a window takes, of anybody at any speed.

        Words are followed by others of the same speaker, so that there is more to tell by.
        """
        speaker, speed = self.somebody(rng)
        first = int(rng.integers(len(self.speech.utterances[speaker])))
        return self._augment(self._take(speaker, first, speed, rng, more=1.0), rng)

    def somebody(self, rng: np.random.Generator) -> tuple[int, float]:
        """A speaker and a speed: the first that ``stretch`` draws from its generator."""
        speaker = int(rng.choice(len(self.speech.speakers), p=self.speech.weights))
        speed = 1.0 if rng.random() < SPEED_SHARES[0] else rng.uniform(min(SPEEDS), max(SPEEDS))
        return speaker, speed

    def windows(self, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """(count, 1, frames, mels) of stretches: see ``stretch`` and ``listen``."""
        parts = [
            self.listen([self.stretch(rng) for _ in range(min(TOGETHER, count - start))], rng)
            for start in range(0, count, TOGETHER)
        ]
        return np.concatenate(parts)

    def listen(self, waves: list[Samples], rng: np.random.Generator) -> NDArray[np.float32]:
        """Windows of stretches, of some of which only a word is heard."""
        shortest = round(SHORTEST_WORD * self.spec.rate)
        heard = [
            shorten(wave, int(rng.integers(shortest, len(wave))), rng) if word else wave
            for wave, word in zip(waves, rng.random(len(waves)) < WORD_SHARE, strict=True)
        ]
        return self.hear(np.stack(heard), rng)

    def hear(self, waves: Samples, rng: np.random.Generator) -> NDArray[np.float32]:
        """Windows (N, 1, frames, mels) of waves (N, samples), in another style of speaking."""
        power = power_spectrum(waves, self.spec)
        styles = replace(self.styles, share=self.styles.share * self.strength)
        for window in power:
            window[:] = restyle(window, self.spec, rng, styles)
        features = decibels(power, self.spec)
        for window in features:
            if rng.random() < 0.7 * self.strength:
                colour(window, rng)
        windows = normalise_windows(features, self.spec)
        for window in windows:
            mask(window[0], 0.5 * self.strength, rng)
        return windows

    def _take(
        self, speaker: int, first: int, speed: float, rng: np.random.Generator, more: float = 0.5
    ) -> Samples:
        """A stretch of speech as long as a window, from utterance ``first``, at ``speed``.

        Where that is too short, others follow with the chance ``more``; else it is repeated.
        """
        utterances = self.speech.utterances[speaker]
        length = math.ceil(self.spec.window_samples * speed) + 1
        clip = utterances[first]
        while len(clip) < length and rng.random() < more:
            clip = np.concatenate([clip, utterances[rng.integers(len(utterances))]])
        if len(clip) < length:
            clip = np.resize(clip, length)
        start = rng.integers(len(clip) - length + 1)
        clip = clip[start : start + length]
        return play(clip, speed)[: self.spec.window_samples]

    def _augment(self, wave: Samples, rng: np.random.Generator) -> Samples:
        if rng.random() < 0.35 * self.strength:
            wave = reverberate(wave, self.spec.rate, rng)
        if rng.random() < 0.15 * self.strength:
            wave = band_limit(wave, self.spec.rate, rng)
        if self.noise and rng.random() < 0.6 * self.strength:
            noise = self.noise[rng.integers(len(self.noise))]
            wave = mix(wave, fill(noise, len(wave), rng), rng.uniform(3, 25))
        if rng.random() < 0.1 * self.strength:
            stranger = int(rng.integers(len(self.speech.speakers)))
            first = int(rng.integers(len(self.speech.utterances[stranger])))
            wave = mix(wave, self._take(stranger, first, 1.0, rng), rng.uniform(10, 25))
        if rng.random() < 0.05 * self.strength:  # overdriven
            wave = np.clip(wave * rng.uniform(1, 3) / np.abs(wave).max(), -1, 1)
        return wave
