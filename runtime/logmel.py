"""Log-mel spectrograms in numpy: the features of the voice network."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgeid.runtime.voice import VoiceSpec

Floats = NDArray[np.float32]


def log_mel(samples: Floats, spec: VoiceSpec) -> Floats:
    """Log-mel spectrogram in dB: (..., n) samples -> (..., frames, mels) float32.

    The same numbers as librosa's ``melspectrogram(center=False, power=2)`` followed by
    10 log10 with a floor of 1e-10.
    """
    return decibels(power_spectrum(samples, spec), spec)


def decibels(power: Floats, spec: VoiceSpec) -> Floats:
    """Mel bands of power spectra: (..., frames, fft/2+1) -> (..., frames, mels) in dB."""
    mel = power @ mel_filters(spec)
    return np.asarray(10 * np.log10(np.maximum(mel, np.float32(1e-10))), np.float32)


def power_spectrum(samples: Floats, spec: VoiceSpec) -> Floats:
    """(..., n) samples -> (..., frames, fft/2+1) squared magnitudes."""
    frames = sliding_window_view(samples, spec.fft, axis=-1)[..., :: spec.hop, :]
    spectrum = np.fft.rfft(frames * _window(spec), axis=-1)
    return np.asarray(spectrum.real**2 + spectrum.imag**2, np.float32)


@lru_cache(maxsize=4)
def _window(spec: VoiceSpec) -> Floats:
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(spec.window) / spec.window)
    left = (spec.fft - spec.window) // 2
    padded = np.pad(hann, (left, spec.fft - spec.window - left))
    return padded.astype(np.float32)


@lru_cache(maxsize=4)
def mel_filters(spec: VoiceSpec) -> Floats:
    """(fft/2+1, mels) triangular filters of unit area on the Slaney mel scale."""
    edges = _mel_to_hz(np.linspace(_hz_to_mel(spec.low), _hz_to_mel(spec.high), spec.mels + 2))
    bins = np.arange(spec.fft // 2 + 1) * spec.rate / spec.fft
    rise = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    triangles = np.clip(np.minimum(rise, fall), 0, None) * 2 / (edges[2:] - edges[:-2])
    return triangles.astype(np.float32)


# Slaney's scale: linear below 1,000 Hz (15 mel), logarithmic above (27 steps per factor 6.4).
def _hz_to_mel(hz: float) -> float:
    return hz * 3 / 200 if hz < 1000 else float(15 + 27 * np.log(hz / 1000) / np.log(6.4))


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))
