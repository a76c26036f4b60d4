"""What becomes of speech on its way to a network: speed, rooms, microphones, noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from edgeid.runtime.audio import Samples


def shorten(wave: Samples, length: int, rng: np.random.Generator) -> Samples:
    """``length`` samples from anywhere in ``wave``, repeated as the runtime repeats a word."""
    start = rng.integers(len(wave) - length + 1)
    return np.resize(wave[start : start + length], len(wave))


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


def fill(noise: Samples, length: int, rng: np.random.Generator) -> Samples:
    """``length`` samples of ``noise`` from anywhere, repeated as often as it takes."""
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


def colour(decibels: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Another microphone: a smooth random curve over frequency, added in place."""
    knots = rng.normal(0, rng.uniform(0.5, 4), 6)
    bands = decibels.shape[1]
    decibels += np.interp(np.linspace(0, 5, bands), np.arange(6), knots).astype(np.float32)


def mask(window: NDArray[np.float32], share: float, rng: np.random.Generator) -> None:
    """Blank a band and a stretch of time (SpecAugment, Park et al. 2019), in place."""
    frames, bands = window.shape
    if rng.random() < share:
        width, start = rng.integers(1, 12), rng.integers(bands - 12)
        window[:, start : start + width] = 0
    if rng.random() < share:
        width, start = rng.integers(1, 16), rng.integers(frames - 16)
        window[start : start + width] = 0
