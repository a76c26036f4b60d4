"""Speed, rooms, microphones and noise for training."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("soundfile")

from edgeid.converters.training.acoustics import (
    band_limit,
    mix,
    play,
    reverberate,
    shorten,
)

RNG = np.random.default_rng(0)


def noise(count, level=0.1):
    return (level * RNG.standard_normal(count)).astype(np.float32)


def test_mix_reaches_the_ratio_asked_for():
    wave, other = noise(16000), noise(16000, 0.7)
    added = mix(wave, other, 10.0) - wave
    ratio = 10 * np.log10(np.mean(wave**2) / np.mean(added**2))
    assert ratio == pytest.approx(10.0, abs=0.01)


def test_reverberation_keeps_the_direct_sound_and_the_length():
    click = np.zeros(16000, np.float32)
    click[100] = 1
    wet = reverberate(click, 16000, np.random.default_rng(1))
    assert wet.shape == click.shape
    assert wet[100] == pytest.approx(1.0, abs=1e-4)
    assert np.abs(wet[:100]).max() < 1e-4
    assert np.abs(wet[200:]).max() > 1e-3


def test_band_limit_takes_the_top_away():
    spectrum = np.abs(np.fft.rfft(band_limit(noise(16000), 16000, np.random.default_rng(1))))
    assert spectrum[7500:].mean() < 0.05 * spectrum[1000:3000].mean()


def test_playing_faster_raises_the_pitch_and_shortens():
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    fast = play(tone, 1.1)
    assert len(fast) == 14545  # places 0, 1.1 ... 15998.4
    peak = np.abs(np.fft.rfft(fast)).argmax() * 16000 / len(fast)
    assert peak == pytest.approx(1100, abs=2)
    assert play(tone, 1.0) is tone


def test_shortened_speech_is_repeated():
    wave = np.arange(10, dtype=np.float32)
    for seed in range(20):
        first, second, third, *rest = shorten(wave, 3, np.random.default_rng(seed))
        assert [first, second, third] == [first, first + 1, first + 2]
        assert rest == [first, second, third, first, second, third, first]
    starts = {shorten(wave, 3, np.random.default_rng(seed))[0] for seed in range(100)}
    assert starts == set(range(8))
    np.testing.assert_array_equal(shorten(wave, 10, np.random.default_rng(0)), wave)
