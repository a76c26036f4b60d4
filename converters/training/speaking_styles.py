"""Other ways in which the same person may speak: pitch and vocal effort, for training.

Excitement raises the pitch by half an octave and more and makes a voice brighter, and neither
says who speaks. What does, the shape of the vocal tract, lies in the envelope of the spectrum,
which stays where it is when the pitch is changed here. A recording that is played faster, in
contrast, moves both: that is another speaker.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.voice import VoiceSpec

Floats = NDArray[np.float32]
QUEFRENCY = 0.0019  # seconds; what lies below is the envelope, a pitch of 530 Hz just above it
FLOOR = 1e-10  # of powers, as in ``log_mel``
BEND = 500.0  # Hz, from which on effort tilts a spectrum


@dataclass(frozen=True)
class Styles:
    """How much ways of speaking vary.

    Attributes:
        share: chance that the pitch is changed, and that the effort is.
        octaves: by which the pitch moves, at most, up or down.
        melody: octaves by which it moves beside that within a window (standard deviation).
        tilt: decibels an octave by which effort tilts a spectrum, at most.
    """

    share: float = 0.5
    octaves: float = 0.6
    melody: float = 0.1
    tilt: float = 4.0


def restyle(power: Floats, spec: VoiceSpec, rng: np.random.Generator, styles: Styles) -> Floats:
    """Power spectra (frames, bins) of the same person speaking otherwise."""
    if rng.random() < styles.share:
        knots = rng.normal(0, styles.melody, 5)
        melody = np.interp(np.linspace(0, 4, len(power)), np.arange(5), knots)
        power = change_pitch(power, 2 ** (rng.uniform(-1, 1) * styles.octaves + melody), spec)
    if rng.random() < styles.share:
        power = change_effort(power, rng.uniform(-1, 1) * styles.tilt, spec)
    return power


def change_pitch(power: Floats, factors: NDArray[np.float64], spec: VoiceSpec) -> Floats:
    """Multiply the pitch of each frame by its factor and keep the envelope.

    Args:
        power: (frames, bins).
        factors: (frames,), above 0.
    """
    logarithm = np.log(np.maximum(power, FLOOR))
    envelope = _envelope(logarithm, spec)
    fine = logarithm - envelope
    last = power.shape[1] - 1
    at = np.arange(last + 1) / factors[:, None]
    at = last - np.abs(last - at % (2 * last))  # beyond the top the fine structure is mirrored
    below = np.minimum(at.astype(np.intp), last - 1)
    share = at - below
    moved = (1 - share) * np.take_along_axis(fine, below, 1)
    moved += share * np.take_along_axis(fine, below + 1, 1)
    return np.asarray(np.exp(envelope + moved), np.float32)


def _envelope(logarithm: Floats, spec: VoiceSpec) -> Floats:
    """The slow part along frequency: low quefrencies of the cepstrum, faded out."""
    cepstrum = np.fft.irfft(logarithm, axis=1)
    kept = round(QUEFRENCY * spec.rate)
    fade = np.zeros(cepstrum.shape[1])
    fade[: kept + 1] = 0.5 + 0.5 * np.cos(np.pi * np.clip(np.arange(kept + 1) / kept * 2 - 1, 0, 1))
    fade[-kept:] = fade[kept:0:-1]
    return np.asarray(np.fft.rfft(cepstrum * fade, axis=1).real, np.float32)


def change_effort(power: Floats, tilt: float, spec: VoiceSpec) -> Floats:
    """Raise power by ``tilt`` dB an octave from 500 Hz on: shouting above 0, murmuring below."""
    hertz = np.arange(power.shape[1]) * spec.rate / spec.fft
    octaves = np.log2(np.maximum(hertz, BEND) / BEND)
    return np.asarray(power * 10 ** (tilt * octaves / 10), np.float32)
