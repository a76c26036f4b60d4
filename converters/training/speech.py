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
from scipy.fft import next_fast_len
from tqdm import tqdm

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
        power = power_spectrum(waves, self.spec)
        styles = replace(self.styles, share=self.styles.share * self.strength)
        for window in power:
            window[:] = restyle(window, self.spec, rng, styles)
        features = decibels(power, self.spec)
        for window in features:
            if rng.random() < 0.7 * self.strength:
                _colour(window, rng)
        windows = normalise_windows(features, self.spec)
        for window in windows:
            _mask(window[0], 0.5 * self.strength, rng)
        classes = speakers + speeds * len(self.speech.speakers)
        return SpeechBatch(windows, classes, np.array(utterances))

    def _take(self, speaker: int, first: int, speed: float, rng: np.random.Generator) -> Samples:
        """A stretch of speech as long as a window, from utterance ``first``, at ``speed``."""
        utterances = self.speech.utterances[speaker]
        length = math.ceil(self.spec.window_samples * speed) + 1
        clip = utterances[first]
        while len(clip) < length and rng.random() < 0.5:  # else the same words are repeated
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
        if rng.random() < 0.6 * self.strength:
            noise = self.noise[rng.integers(len(self.noise))]
            wave = mix(wave, _stretch(noise, len(wave), rng), rng.uniform(3, 25))
        if rng.random() < 0.1 * self.strength:
            stranger = int(rng.integers(len(self.speech.speakers)))
            first = int(rng.integers(len(self.speech.utterances[stranger])))
            wave = mix(wave, self._take(stranger, first, 1.0, rng), rng.uniform(10, 25))
        if rng.random() < 0.05 * self.strength:  # overdriven
            wave = np.clip(wave * rng.uniform(1, 3) / np.abs(wave).max(), -1, 1)
        return wave


def play(clip: Samples, speed: float) -> Samples:
    """Play faster or slower, with the pitch going along."""
    if speed == 1.0:
        return clip
    places = np.arange(int((len(clip) - 1) / speed) + 1) * speed
    return np.asarray(np.interp(places, np.arange(len(clip)), clip), np.float32)


def mix(wave: Samples, noise: Samples, snr: float) -> Samples:
    """Add ``noise`` at a signal-to-noise ratio of ``snr`` dB."""
    signal_power, noise_power = np.mean(wave**2), np.mean(noise**2)
    gain = np.sqrt(signal_power / (noise_power + 1e-12)) * 10 ** (-snr / 20)
    return (wave + np.float32(gain) * noise).astype(np.float32)


def _stretch(noise: Samples, length: int, rng: np.random.Generator) -> Samples:
    return np.resize(np.roll(noise, -int(rng.integers(len(noise)))), length)


def reverberate(wave: Samples, rate: int, rng: np.random.Generator) -> Samples:
    """Convolve with a synthetic room: a direct path and exponentially decaying noise."""
    decay_time = rng.uniform(0.1, 0.6)  # RT60 in seconds
    time = np.arange(int(decay_time * rate * 0.7)) / rate
    tail = rng.standard_normal(len(time)) * np.exp(-6.9 * time / decay_time)
    delay = int(rng.uniform(0.001, 0.01) * rate)
    tail[:delay] = 0
    tail *= rng.uniform(0.2, 1.0) / (np.sqrt((tail**2).sum()) + 1e-9)
    tail[0] = 1.0
    size = next_fast_len(len(wave) + len(tail), real=True)
    spectrum = np.fft.rfft(wave, size) * np.fft.rfft(tail.astype(np.float32), size)
    return np.fft.irfft(spectrum, size)[: len(wave)].astype(np.float32)


def band_limit(wave: Samples, rate: int, rng: np.random.Generator) -> Samples:
    """A telephone or a cheap microphone: cut below 50-300 Hz and above 3.2-6 kHz."""
    size = next_fast_len(len(wave), real=True)
    spectrum = np.fft.rfft(wave, size)
    hertz = np.linspace(0, rate / 2, len(spectrum))
    low, high = rng.uniform(50, 300), rng.uniform(3200, 6000)
    response = 1 / (1 + (low / np.maximum(hertz, 1)) ** 4) / (1 + (hertz / high) ** 12)
    return np.fft.irfft(spectrum * response, size)[: len(wave)].astype(np.float32)


def _colour(decibels: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Another microphone: a smooth random curve over frequency, added in place."""
    knots = rng.normal(0, rng.uniform(0.5, 4), 6)
    bands = decibels.shape[1]
    decibels += np.interp(np.linspace(0, 5, bands), np.arange(6), knots).astype(np.float32)


def _mask(window: NDArray[np.float32], share: float, rng: np.random.Generator) -> None:
    """Blank a band and a stretch of time (SpecAugment, Park et al. 2019), in place."""
    frames, bands = window.shape
    if rng.random() < share:
        width, start = rng.integers(1, 12), rng.integers(bands - 12)
        window[:, start : start + width] = 0
    if rng.random() < share:
        width, start = rng.integers(1, 16), rng.integers(frames - 16)
        window[start : start + width] = 0
