"""Decoding, mixing down and resampling, against scipy and hand-made signals."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import scipy.signal
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from edgeid.runtime.audio import load_audio, resample
from edgeid.runtime.errors import AudioError


def encode(samples, rate=16000, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **options)
    return file.getvalue()


def tone(hertz, rate, seconds=0.5):
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate).astype(np.float32)


def test_int16_is_scaled_and_mixed_down():
    stereo = np.array([[16384, 0], [-32768, -32768]], np.int16)
    samples, rate = load_audio(stereo, 8000)
    assert rate == 8000
    assert samples.dtype == np.float32
    assert samples.tolist() == [0.25, -1.0]


def test_every_way_to_hand_in_audio_gives_the_same(tmp_path):
    speech = (tone(300, 16000) * 20000).astype(np.int16)
    data = encode(speech, format="WAV")
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    expected = speech / np.float32(32768)
    for audio in (path, str(path), data, (speech, 16000), (speech[:, None], 16000)):
        samples, rate = load_audio(audio)
        assert rate == 16000
        np.testing.assert_allclose(samples, expected, atol=1e-7)
    np.testing.assert_allclose(load_audio(encode(speech, format="FLAC"))[0], expected, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_resampling_keeps_a_tone(rate):
    resampled = resample(tone(1000, rate), rate, 16000)
    expected = tone(1000, 16000)
    assert len(resampled) == len(expected)
    np.testing.assert_allclose(resampled[300:-300], expected[300:-300], atol=5e-5)


def test_resampling_suppresses_aliases():
    """11 kHz at 48 kHz would fold to 5 kHz at 16 kHz."""
    folded = resample(tone(11000, 48000), 48000, 16000)
    assert np.abs(folded[300:-300]).max() < 1e-3


def test_resampling_agrees_with_scipy_on_speech_like_noise():
    rng = np.random.default_rng(0)
    low_passed = scipy.signal.lfilter([0.05], [1, -0.95], rng.standard_normal(44100))
    ours = resample(low_passed.astype(np.float32), 44100, 16000)
    oracle = scipy.signal.resample_poly(low_passed, 160, 441)
    error = np.sqrt(np.mean((ours - oracle)[300:-300] ** 2) / np.mean(oracle**2))
    assert error < 0.03  # the two filters differ near the Nyquist frequency


@given(st.integers(4000, 96000), st.integers(1, 3000))
def test_resampled_length_follows_the_ratio(rate, count):
    out = resample(np.ones(count, np.float32), rate, 16000)
    assert abs(len(out) - count * 16000 / rate) <= 1 + count * 16000 / rate * 1e-3
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    ("audio", "rate", "words"),
    [
        (np.zeros(10, np.float32), None, "without a sampling rate"),
        (np.zeros(0, np.float32), 16000, "empty"),
        (np.zeros((2, 2, 2), np.float32), 16000, "shape"),
        (np.zeros((2, 4000), np.float32), 16000, "transpose"),
        (np.zeros(10, np.int32), 16000, "int32"),
        (np.zeros(10, complex), 16000, "complex"),
        (np.array([0.0, np.nan], np.float32), 16000, "NaN"),
        (np.array([0.0, np.inf], np.float64), 16000, "NaN or infinite"),
        (np.full(10, 12000.0, np.float32), 16000, "full scale"),
        (np.zeros(10, np.float32), 0, "outside"),
        (np.zeros(10, np.float32), -16000, "outside"),
        (np.zeros(10, np.float32), 16000.5, "whole number"),
        (np.zeros(10, np.float32), True, "whole number"),
        (np.broadcast_to(np.float32(0), 16000 * 601), 16000, "at most 600"),
        (b"", None, "0 bytes"),
        (b"not audio at all", None, "cannot be decoded"),
        (None, None, "NoneType"),
        ((np.zeros(3, np.float32), 16000, 1), None, "3 items"),
    ],
)
def test_bad_audio_is_told(audio, rate, words):
    with pytest.raises(AudioError, match=words):
        load_audio(audio, rate)


def test_missing_file_and_folder_are_told(tmp_path):
    with pytest.raises(AudioError, match=r"no audio file at .*nobody\.wav"):
        load_audio(tmp_path / "nobody.wav")
    with pytest.raises(AudioError, match="cannot read"):
        load_audio(tmp_path)


@pytest.mark.parametrize(
    "options", [{"format": "WAV"}, {"format": "FLAC"}, {"format": "OGG", "subtype": "VORBIS"}]
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_audio_is_told(options, share):
    rng = np.random.default_rng(0)
    data = encode(rng.uniform(-0.5, 0.5, 32000).astype(np.float32), **options)
    with pytest.raises(AudioError):
        load_audio(data[: int(len(data) * share)])


def test_a_streamed_wav_of_unknown_length_is_read():
    data = bytearray(encode(np.full(100, 0.5), format="WAV", subtype="PCM_16"))
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    samples, _ = load_audio(bytes(data))
    assert len(samples) == 100


@given(st.binary(max_size=200), st.sampled_from([b"RIFF", b"OggS", b"fLaC", b"RIFF\0\0\0\0WAVE"]))
def test_garbage_never_escapes_as_another_error(garbage, magic):
    with pytest.raises(AudioError):
        load_audio(magic + garbage)
