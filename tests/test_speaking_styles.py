"""Other ways in which the same person may speak."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeid.converters.training.speaking_styles import (
    Styles,
    change_effort,
    change_pitch,
    restyle,
)
from edgeid.runtime.logmel import power_spectrum
from edgeid.runtime.voice import VoiceSpec

SPEC = VoiceSpec()
TIME = np.arange(SPEC.window_samples) / SPEC.rate
HERTZ = np.arange(SPEC.fft // 2 + 1) * SPEC.rate / SPEC.fft


def vowel(pitch, formant=700.0):
    """Power spectra (frames, bins): harmonics under a resonance of 300 Hz width."""
    numbers = np.arange(1, int(7000 / pitch))
    loudness = 1 / (1 + ((numbers * pitch - formant) / 150) ** 2) + 0.01
    wave = (loudness[:, None] * np.sin(2 * np.pi * pitch * numbers[:, None] * TIME)).sum(0)
    hiss = 1e-3 * np.random.default_rng(0).standard_normal(len(wave))
    return power_spectrum((0.1 * wave + hiss).astype(np.float32), SPEC)


def pitch_of(power):
    """Hertz: the strongest quefrency of the mean spectrum between 80 and 450 Hz."""
    cepstrum = np.fft.irfft(np.log(power).mean(0))
    low, high = SPEC.rate // 450, SPEC.rate // 80
    return SPEC.rate / (low + cepstrum[low:high].argmax())


@pytest.mark.parametrize("factor", [0.75, 1.3])
def test_the_pitch_moves_and_the_formant_stays(factor):
    power = vowel(160)
    assert pitch_of(power) == pytest.approx(160, rel=0.02)
    moved = change_pitch(power, np.full(len(power), factor), SPEC)
    assert pitch_of(moved) == pytest.approx(160 * factor, rel=0.04)
    inside = (HERTZ > 400) & (HERTZ < 1000)
    centres = [np.average(HERTZ[inside], weights=p.mean(0)[inside]) for p in (power, moved)]
    assert centres[1] == pytest.approx(centres[0], rel=0.1)  # harmonics fall elsewhere under it


def test_a_factor_of_one_changes_nothing():
    power = vowel(200)
    same = change_pitch(power, np.ones(len(power)), SPEC)
    np.testing.assert_allclose(np.log(same), np.log(np.maximum(power, 1e-10)), atol=1e-3)


def test_effort_tilts_by_hand():
    flat = np.ones((2, 257), np.float32)
    louder = 10 * np.log10(change_effort(flat, 3.0, SPEC)[0])
    at = [int(np.abs(HERTZ - hertz).argmin()) for hertz in (0, 500, 1000, 4000)]
    np.testing.assert_allclose(louder[at], [0, 0, 3, 9], atol=1e-5)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-12, 1.0, 1e6]))
def test_whatever_is_drawn_stays_finite(seed, level):
    rng = np.random.default_rng(seed)
    power = (level * rng.random((7, 257))).astype(np.float32)
    found = restyle(power, SPEC, rng, Styles(share=1.0, octaves=1.5, melody=0.5))
    assert found.shape == power.shape
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert (found >= 0).all()


def test_without_a_share_nothing_is_changed():
    power = vowel(120)
    assert restyle(power, SPEC, np.random.default_rng(0), Styles(share=0)) is power
