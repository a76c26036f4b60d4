"""Log-mel against librosa, speech activity on made and real signals, windows by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeid.runtime.errors import (
    ClippedAudioError,
    ModelFormatError,
    SilenceError,
    TooLittleSpeechError,
)
from edgeid.runtime.logmel import log_mel, mel_filters
from edgeid.runtime.voice import (
    VoiceSpec,
    clipped_share,
    cut_windows,
    normalise_windows,
    read_voice,
    speech_activity,
)

SPEC = VoiceSpec()
RNG = np.random.default_rng(0)


def voiced(seconds, rate=16000, pitch=120.0, level=0.2):
    """A buzz with moving formants in syllables of a quarter second, four a second."""
    time = np.arange(int(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, 25))
    syllables = np.clip(np.sin(2 * np.pi * 4 * time), 0, 1) ** 0.5
    return (level * buzz * syllables / 2).astype(np.float32)


@pytest.mark.parametrize(
    "spec", [SPEC, replace(SPEC, fft=1024, window=1024, hop=160, mels=40, low=0.0, high=8000.0)]
)
def test_log_mel_equals_librosa(spec):
    librosa = pytest.importorskip("librosa")
    samples = (0.3 * RNG.standard_normal(48000)).astype(np.float32) * np.linspace(
        1e-4, 1, 48000, dtype=np.float32
    )
    mel = librosa.feature.melspectrogram(
        y=samples, sr=spec.rate, n_fft=spec.fft, win_length=spec.window, hop_length=spec.hop,
        center=False, power=2.0, n_mels=spec.mels, fmin=spec.low, fmax=spec.high,
    )  # fmt: skip
    oracle = 10 * np.log10(np.maximum(mel, 1e-10)).T
    ours = log_mel(samples, spec)
    assert ours.dtype == np.float32
    assert ours.shape == oracle.shape
    assert np.abs(ours - oracle).max() < 1e-4


def test_every_mel_band_hears_something():
    assert (mel_filters(SPEC).sum(axis=0) > 0).all()


def test_batched_log_mel_equals_one_by_one():
    batch = RNG.standard_normal((3, 4000)).astype(np.float32)
    together = log_mel(batch, SPEC)
    for one, expected in zip(batch, together, strict=True):
        np.testing.assert_array_equal(log_mel(one, SPEC), expected)


def test_windows_have_no_mean_and_a_fixed_scale():
    windows = np.array([[[1.0, 2.0], [3.0, 6.0]]], np.float32)
    expected = np.array([-2, -1, 0, 3]).reshape(1, 1, 2, 2) * 0.5
    np.testing.assert_allclose(normalise_windows(windows, replace(SPEC, scale=0.5)), expected)


@pytest.mark.parametrize(
    ("frames", "windows"), [(1, 1), (112, 1), (113, 2), (168, 2), (169, 3), (5000, 24)]
)
def test_number_of_windows(frames, windows):
    speech = RNG.standard_normal((frames - 1) * SPEC.hop + SPEC.fft).astype(np.float32)
    assert cut_windows(speech, SPEC).shape == (windows, 1, 112, 96)


def test_short_speech_is_repeated():
    speech = RNG.standard_normal(240 * 20).astype(np.float32)  # 20 hops
    window = cut_windows(speech, SPEC)[0, 0]
    np.testing.assert_allclose(window[0:20], window[20:40], atol=1e-4)


def test_level_does_not_matter():
    # enough noise that no band is near the floor of the logarithm, which is absolute
    noise = np.random.default_rng(7).standard_normal(32000).astype(np.float32)
    speech = voiced(2) + np.float32(1e-2) * noise
    loud, quiet = cut_windows(speech, SPEC), cut_windows(speech * np.float32(0.2), SPEC)
    np.testing.assert_allclose(loud, quiet, atol=1e-3)


def test_speech_between_pauses_is_found():
    silence = np.zeros(16000, np.float32)
    samples = np.concatenate([silence, voiced(1), silence, voiced(1), silence])
    samples += (1e-4 * RNG.standard_normal(len(samples))).astype(np.float32)
    mask, snr = speech_activity(samples, SPEC)
    seconds = np.arange(len(mask)) * SPEC.hop / SPEC.rate
    assert mask[(seconds > 1.1) & (seconds < 1.8)].mean() > 0.9
    assert not mask[(seconds < 0.85) | (seconds > 4.15)].any()
    assert mask.sum() * SPEC.hop / SPEC.rate == pytest.approx(2.0, abs=0.4)
    assert snr > 30


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(32000, np.float32),
        np.zeros(10, np.float32),
        np.full(32000, 0.3, np.float32),
        (1e-6 * RNG.standard_normal(32000)).astype(np.float32),
        (0.1 * RNG.standard_normal(32000)).astype(np.float32),
        (0.3 * np.sin(np.arange(48000) * 2 * np.pi * 50 / 16000)).astype(np.float32),
    ],
    ids=["zeros", "ten samples", "offset", "nearly nothing", "hiss", "mains hum"],
)
def test_what_is_not_speech_is_silence(samples):
    with pytest.raises(SilenceError, match="no speech"):
        read_voice((samples, 16000), None, SPEC)
    assert read_voice((samples, 16000), None, SPEC, checks=False).windows.shape[1:] == (1, 112, 96)


def test_a_slammed_door_is_not_speech():
    samples = (1e-4 * RNG.standard_normal(32000)).astype(np.float32)
    decay = np.exp(-np.arange(8000) / 1500)
    samples[8000:16000] += (0.5 * decay * RNG.standard_normal(8000)).astype(np.float32)
    with pytest.raises(SilenceError):
        read_voice((samples, 16000), None, SPEC)


def test_little_speech_is_told_with_its_length():
    samples = np.concatenate(
        [np.zeros(16000, np.float32), voiced(0.5), np.zeros(16000, np.float32)]
    )
    with pytest.raises(TooLittleSpeechError, match=r"0\.\d\d s of speech, at least 1\.00 s"):
        read_voice((samples, 16000), None, SPEC)


def test_clipping_is_told():
    samples = np.clip(voiced(3, level=3.0), -1, 1)
    with pytest.raises(ClippedAudioError, match="lower the microphone gain"):
        read_voice((samples, 16000), None, SPEC)


def test_clipped_share_counts_runs_only():
    samples = np.array([0, 1, 0, 1, 1, 0, -1, -1, -1, 0], np.float32)
    assert clipped_share(samples) == pytest.approx(0.5)


def test_quality_of_a_good_recording():
    samples = np.concatenate([np.zeros(8000, np.float32), voiced(3), np.zeros(8000, np.float32)])
    sample = read_voice((samples, 16000), None, SPEC)
    assert sample.quality.duration == pytest.approx(4.0)
    assert sample.quality.speech == pytest.approx(3.0, abs=0.4)
    assert sample.quality.clipped == 0
    assert sample.windows.dtype == np.float32


def test_the_rate_of_the_recording_hardly_matters():
    at_16, at_48 = voiced(2), voiced(2, rate=48000)
    a = read_voice((at_16, 16000), None, SPEC).windows
    b = read_voice((at_48, 48000), None, SPEC).windows
    assert np.corrcoef(a[0].ravel(), b[0].ravel())[0, 1] > 0.98


def test_spec_survives_the_file():
    assert VoiceSpec.from_dict(SPEC.to_dict()) == SPEC


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rate": 0}, "rate = 0"),
        ({"rate": "16000"}, "rate is '16000'"),
        ({"mels": True}, "mels is True"),
        ({"mels": 96.5}, "mels is 96.5"),
        ({"scale": float("nan")}, "scale"),
        ({"window": 600}, "do not fit"),
        ({"high": 9000.0}, "do not fit"),
        ({"extra": 1}, "extra"),
    ],
)
def test_bad_voice_sections_are_refused(change, words):
    with pytest.raises(ModelFormatError, match=words):
        VoiceSpec.from_dict({**SPEC.to_dict(), **change})
