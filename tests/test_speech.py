"""Loading, splitting and augmenting speech for training."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("cv2")
pytest.importorskip("tqdm")

from edgeid.converters.training.speech import (  # noqa: E402
    SpeechSampler,
    SpeechSet,
    read_speech,
)
from edgeid.runtime.errors import DataError  # noqa: E402
from edgeid.runtime.voice import VoiceSpec, cut_windows  # noqa: E402

SPEC = VoiceSpec()
RNG = np.random.default_rng(0)


def noise(count, level=0.1):
    return (level * RNG.standard_normal(count)).astype(np.float32)


def small_set():
    return SpeechSet(("s/ann", "s/bob"), ((noise(8000), noise(40000)), (noise(30000),)))


def test_draw_gives_network_input_and_depends_on_its_generator_alone():
    sampler = SpeechSampler(small_set(), (noise(20000),), SPEC)
    batch = sampler.draw(12, np.random.default_rng(3))
    again = sampler.draw(12, np.random.default_rng(3))
    np.testing.assert_array_equal(batch.windows, again.windows)
    np.testing.assert_array_equal(batch.utterances, again.utterances)
    assert batch.windows.shape == (12, 1, 112, 96)
    assert batch.windows.dtype == np.float32
    assert sampler.classes == 10
    assert set(batch.classes) <= set(range(10))
    for speaker, utterance in zip(batch.classes % 2, batch.utterances, strict=True):
        assert 0 <= utterance < len(sampler.speech.utterances[speaker])


def test_everybody_at_every_speed_comes_in_the_order_of_the_classes():
    speech = small_set()
    fast = speech.at_all_speeds()
    assert len(fast.speakers) == SpeechSampler(speech, (), SPEC).classes
    for name, utterances in zip(fast.speakers, fast.utterances, strict=True):
        speaker, speed = name.split(" x ")
        same = speech.utterances[speech.speakers.index(speaker)]
        for utterance, original in zip(utterances, same, strict=True):
            assert len(utterance) == pytest.approx(len(original) / float(speed), abs=1)


@pytest.mark.parametrize("frames", range(100, 110))
def test_windows_are_full_at_every_speed_and_length(frames):
    spec = VoiceSpec(frames=frames, hop=237)
    sampler = SpeechSampler(small_set(), (noise(20000),), spec)
    batch = sampler.draw(40, np.random.default_rng(frames))
    assert set(batch.classes // 2) == {0, 1, 2, 3, 4}
    assert batch.windows.shape == (40, 1, frames, 96)


def test_an_unaltered_draw_is_what_the_device_computes():
    """Training sees the features of the runtime: same code, same numbers."""
    clip = noise(SPEC.window_samples + 1)
    speech = SpeechSet(("s/ann",), ((clip,),))
    sampler = SpeechSampler(speech, (noise(16000),), SPEC, strength=0)
    batch = sampler.draw(20, np.random.default_rng(0))
    plain = batch.windows[batch.classes == 0][0]
    np.testing.assert_allclose(plain, cut_windows(clip[:-1], SPEC)[0], atol=1e-5)


def test_a_word_is_followed_by_others_of_the_same_speaker():
    """Ann's words are ramps that begin at 1000, 2000, 3000; Bob's one word at 9000."""
    word = np.arange(4000, dtype=np.float32) / 4000
    ann = tuple(word + 1000 * k for k in (1, 2, 3))
    sampler = SpeechSampler(SpeechSet(("s/ann", "s/bob"), (ann, (word + 9000,))), (), SPEC)
    sampler = replace(sampler, strength=0.0)
    met = set()
    for seed in range(40):
        wave = sampler.stretch(np.random.default_rng(seed))
        np.testing.assert_array_equal(wave, sampler.stretch(np.random.default_rng(seed)))
        assert len(wave) == SPEC.window_samples
        words = {int(v) for v in np.unique(wave // 1000)}
        assert words == {9} or words <= {1, 2, 3}
        met.add(frozenset(words))
    assert {frozenset({9}), frozenset({1, 2, 3})} <= met


def test_a_stretch_that_is_heard_unaltered_is_what_the_device_computes():
    speech = SpeechSet(("s/ann",), ((noise(3 * SPEC.window_samples),),))
    sampler = SpeechSampler(speech, (), SPEC, strength=0.0)
    wave = sampler.stretch(np.random.default_rng(1))
    heard = sampler.hear(wave[None], np.random.default_rng(2))
    np.testing.assert_allclose(heard, cut_windows(wave, SPEC), atol=1e-5)


def test_of_some_stretches_only_a_word_is_heard():
    """Unaltered windows of one long utterance: those of a word repeat it, the others are whole."""
    speech = SpeechSet(("s/ann",), ((noise(SPEC.window_samples + 1),),))
    sampler = SpeechSampler(speech, (), SPEC, strength=0.0)
    waves = [sampler.stretch(np.random.default_rng(k)) for k in range(60)]
    heard = sampler.listen(waves, np.random.default_rng(3))
    whole = sampler.hear(np.stack(waves), np.random.default_rng(0))
    cut = np.abs(heard - whole).max(axis=(1, 2, 3)) > 1e-3
    assert 8 < cut.sum() < 30  # three in ten
    np.testing.assert_array_equal(heard, sampler.listen(waves, np.random.default_rng(3)))


@pytest.mark.parametrize("count", [1, 64, 70])
def test_windows_are_as_many_as_asked_for_and_depend_on_the_generator_alone(count):
    sampler = SpeechSampler(small_set(), (), SPEC)
    windows, again, other = (sampler.windows(count, np.random.default_rng(s)) for s in (4, 4, 5))
    assert windows.shape == (count, 1, 112, 96)
    assert windows.dtype == np.float32
    assert np.isfinite(windows).all()
    np.testing.assert_array_equal(windows, again)
    assert not np.array_equal(windows, other)


def test_less_strength_leaves_more_windows_as_they_are():
    clip = noise(SPEC.window_samples + 1)
    speech = SpeechSet(("s/ann",), ((clip,),))
    plain = cut_windows(clip[:-1], SPEC)[0]

    def share(strength):
        batch = SpeechSampler(speech, (noise(16000),), SPEC, strength=strength).draw(
            200, np.random.default_rng(1)
        )
        own = batch.windows[batch.classes == 0]
        return np.mean([np.allclose(window, plain, atol=1e-5) for window in own])

    # ten chances: at 0.3 0.895 x 0.955 x 0.82 x 0.97 x 0.985 x 0.79 x 0.85 ** 4 = 0.28 stay so
    assert share(1.0) < 0.05
    assert 0.12 < share(0.3) < 0.45
    for strength in (-0.1, 1.1):
        with pytest.raises(DataError, match=r"strength of augmentation lies in 0\.\.1"):
            SpeechSampler(speech, (), SPEC, strength=strength)


def test_split_parts_speakers():
    speakers = tuple(f"set/{n}" for n in range(300))
    speech = SpeechSet(speakers, tuple((np.full(4, n, np.float32),) for n in range(300)))
    train, held = speech.split()
    assert not set(train.speakers) & set(held.speakers)
    assert len(train.speakers) + len(held.speakers) == 300
    for speaker, utterances in zip(held.speakers, held.utterances, strict=True):
        assert utterances[0][0] == speakers.index(speaker)


def test_frequent_speakers_are_drawn_more_often_but_not_in_proportion():
    weights = SpeechSet(("a", "b"), ((noise(100),), (noise(400),))).weights
    np.testing.assert_allclose(weights, [1 / 3, 2 / 3])


def test_a_set_of_few_speakers_has_its_part():
    # set s: 100 + 400 + 400 samples, root 30, shared 1 : 2 : 2; set t: 900, root 30, one speaker
    speech = tuple((noise(n),) for n in (100, 400, 400, 900))
    weights = SpeechSet(("s/ann", "s/bob", "s/cem", "t/dan"), speech).weights
    np.testing.assert_allclose(weights, [0.1, 0.2, 0.2, 0.5])


def test_missing_and_silent_archives_are_told(tmp_path):
    with pytest.raises(DataError, match="no such zip"):
        read_speech([tmp_path / "none.zip"], SPEC)
    file = io.BytesIO()
    soundfile.write(file, np.zeros(16000, np.float32), 16000, format="WAV")
    path = tmp_path / "silent.zip"
    with zipfile.ZipFile(path, "w") as members:
        members.writestr("s/ann/1.wav", file.getvalue())
    with pytest.raises(DataError, match="no speech in"):
        read_speech([path], SPEC)
