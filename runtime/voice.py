"""Voice front end: a recording -> windows of log-mel features, with a verdict on quality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.audio import Recording, Samples, load_audio, resample
from edgeid.runtime.errors import (
    ClippedAudioError,
    ModelFormatError,
    SilenceError,
    TooLittleSpeechError,
)
from edgeid.runtime.logmel import log_mel, power_spectrum

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class VoiceSpec:
    """How speech becomes network input; stored in the model file.

    Attributes:
        rate: sampling rate in Hz.
        fft, window, hop: lengths in samples of the transform, the Hann window and the step.
        mels, low, high: mel bands (Slaney) and their range in Hz.
        frames: frames of one network window.
        stride: frames between the starts of neighbouring windows, at most.
        max_windows: windows taken from a long recording, evenly spaced.
        scale: decibels are multiplied by this after the window's mean is taken off.
        min_speech: seconds of speech that a decision needs.
        max_clipped: share of speech samples at full scale that is still accepted.
    """

    rate: int = 16000
    fft: int = 512
    window: int = 400
    hop: int = 240
    mels: int = 96
    low: float = 40.0
    high: float = 7600.0
    frames: int = 112
    stride: int = 56
    max_windows: int = 24
    scale: float = 0.06
    min_speech: float = 1.0
    max_clipped: float = 0.02

    @property
    def window_samples(self) -> int:
        """Samples that one network window covers."""
        return (self.frames - 1) * self.hop + self.fft

    def to_dict(self) -> dict[str, int | float]:
        return asdict(self)

    @classmethod
    def from_dict(cls, section: Mapping[str, object]) -> VoiceSpec:
        """Read the section of a model file; ModelFormatError names the field that is wrong."""
        limits = {
            "rate": (4000, 96000), "fft": (64, 8192), "window": (32, 8192), "hop": (16, 8192),
            "mels": (8, 256), "low": (0, 20000), "high": (100, 48000), "frames": (8, 4096),
            "stride": (1, 4096), "max_windows": (1, 1000), "scale": (1e-6, 1e3),
            "min_speech": (0, 60), "max_clipped": (0, 1),
        }  # fmt: skip
        unknown = set(section) ^ {f.name for f in fields(cls)}
        if unknown:
            raise ModelFormatError(f"voice section: fields missing or unknown: {sorted(unknown)}")
        for name, (least, most) in limits.items():
            value = section[name]
            whole = isinstance(getattr(cls, name), int)
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ModelFormatError(f"voice section: {name} is {value!r}, not a number")
            if not least <= value <= most:
                raise ModelFormatError(f"voice section: {name} = {value} outside {least}..{most}")
        spec = cls(**section)  # type: ignore[arg-type]
        if not spec.window <= spec.fft or not spec.low < spec.high <= spec.rate / 2:
            raise ModelFormatError(f"voice section: lengths or bands do not fit together: {spec}")
        return spec


@dataclass(frozen=True)
class VoiceQuality:
    """What the front end measured: seconds, decibels, and a share of samples."""

    duration: float
    speech: float
    snr: float
    clipped: float


@dataclass(frozen=True)
class VoiceSample:
    """Network input (n, 1, frames, mels) of one recording, and its quality."""

    windows: Floats
    quality: VoiceQuality


def read_voice(
    audio: Recording, rate: int | None, spec: VoiceSpec, *, checks: bool = True
) -> VoiceSample:
    """Decode, resample, keep the speech, and cut log-mel windows.

    With ``checks=False`` poor recordings are processed too (for evaluation); a recording
    without any speech is then used whole.

    Raises:
        AudioError: see ``load_audio``.
        SilenceError, TooLittleSpeechError, ClippedAudioError: with ``checks``.
    """
    samples, source_rate = load_audio(audio, rate)
    clipped = clipped_share(samples)
    samples = resample(samples, source_rate, spec.rate)
    mask, snr = speech_activity(samples, spec)
    duration = len(samples) / spec.rate
    quality = VoiceQuality(duration, float(mask.sum()) * spec.hop / spec.rate, snr, clipped)
    if checks:
        _check(quality, spec)
    speech = keep_speech(samples, mask, spec) if mask.any() else samples
    return VoiceSample(cut_windows(speech, spec), quality)


def _check(quality: VoiceQuality, spec: VoiceSpec) -> None:
    if quality.speech == 0:
        raise SilenceError(
            f"no speech in {quality.duration:.1f} s of audio: check the microphone, speak closer"
        )
    if quality.clipped > spec.max_clipped:
        raise ClippedAudioError(
            f"{quality.clipped:.1%} of the samples are at full scale "
            f"(at most {spec.max_clipped:.1%}): lower the microphone gain"
        )
    if quality.speech < spec.min_speech:
        raise TooLittleSpeechError(
            f"{quality.speech:.2f} s of speech, at least {spec.min_speech:.2f} s are needed: "
            "speak a whole sentence"
        )


def clipped_share(samples: Samples) -> float:
    """Share of samples in runs of two or more at 99.9 % of full scale or above."""
    full = np.abs(samples) >= 0.999
    runs = full.copy()
    runs[1:] &= full[:-1]
    runs[:-1] |= runs[1:]
    return float(runs.mean()) if len(runs) else 0.0


def speech_activity(samples: Samples, spec: VoiceSpec) -> tuple[NDArray[np.bool_], float]:
    """Which frames hold speech, and an estimate of the signal-to-noise ratio in dB.

    A frame is active when its loudness between 100 and 4,000 Hz stands out of the quietest
    tenth and is within 35 dB of the loudest; gaps under 0.15 s are kept. Steady or
    aperiodic sound (hum, hiss, a slammed door) has active frames but is not speech: at
    least a tenth of the active frames must be periodic with a pitch of 60-400 Hz.
    """
    if len(samples) < spec.fft:
        return np.zeros(0, bool), 0.0
    power = power_spectrum(samples, spec)  # (frames, bins)
    bins = np.arange(power.shape[1]) * spec.rate / spec.fft
    band = power[:, (bins >= 100) & (bins <= 4000)].sum(axis=1)
    loudness = 10 * np.log10(band / spec.fft**2 + 1e-12)
    floor, peak = np.percentile(loudness, [10, 95])
    if peak < -75 or peak - floor < 5:
        return np.zeros(len(loudness), bool), 0.0
    active = loudness > max(peak - 35, min(floor + 6, peak - 10))
    active = _close_gaps(active, round(0.15 * spec.rate / spec.hop))
    if np.mean(_is_periodic(power[active], spec)) < 0.1:
        return np.zeros(len(loudness), bool), 0.0
    quiet = loudness[~active] if (~active).any() else loudness[loudness <= floor]
    snr = np.mean(loudness[active]) - np.mean(quiet)
    return active, float(snr)


def _is_periodic(power: Floats, spec: VoiceSpec) -> NDArray[np.bool_]:
    correlation = np.fft.irfft(power, axis=1)
    shortest, longest = spec.rate // 400, min(spec.rate // 60, spec.fft // 2)
    peak = correlation[:, shortest:longest].max(axis=1)
    return np.asarray(peak > 0.35 * correlation[:, 0])


def _close_gaps(active: NDArray[np.bool_], longest: int) -> NDArray[np.bool_]:
    """Fill inactive runs up to ``longest`` between active frames; widen each run by two."""
    where = np.flatnonzero(active)
    closed = active.copy()
    for left, right in pairwise(where):
        if right - left - 1 <= longest:
            closed[left:right] = True
    widened = closed.copy()
    for step in (1, 2):
        widened[step:] |= closed[:-step]
        widened[:-step] |= closed[step:]
    return widened


def keep_speech(samples: Samples, mask: NDArray[np.bool_], spec: VoiceSpec) -> Samples:
    """The samples under active frames, joined."""
    keep = np.repeat(mask, spec.hop)
    return samples[: len(keep)][keep]


def cut_windows(speech: Samples, spec: VoiceSpec) -> Floats:
    """Network input (n, 1, frames, mels) from speech samples at the model's rate.

    Short speech is repeated to fill one window; long speech gives evenly spaced windows
    that overlap by half or more.
    """
    if len(speech) < spec.window_samples:
        speech = np.resize(speech, spec.window_samples)
    features = log_mel(speech, spec)
    slack = len(features) - spec.frames
    count = min(1 + -(-slack // spec.stride), spec.max_windows)
    starts = np.linspace(0, slack, count).astype(int)
    windows = np.stack([features[start : start + spec.frames] for start in starts])
    return normalise_windows(windows, spec)


def normalise_windows(windows: Floats, spec: VoiceSpec) -> Floats:
    """(n, frames, mels) decibels -> (n, 1, frames, mels) input: no mean, fixed scale.

    Taking off the mean of a window makes the input independent of the recording level.
    """
    centred = windows - windows.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    return np.asarray(centred * np.float32(spec.scale), np.float32)[:, None]
