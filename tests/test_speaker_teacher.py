"""The public speaker encoder as teacher; its weights are stood in for by random ones."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgeid.converters.training import speaker_teacher  # noqa: E402
from edgeid.converters.training.speaker_teacher import (  # noqa: E402
    DIM,
    WINDOW,
    SpeakerTeacher,
    teach_speakers,
)
from edgeid.converters.training.speech import SpeechSet  # noqa: E402
from edgeid.runtime.errors import DataError, MissingExtraError  # noqa: E402

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    lstm, linear = torch.nn.LSTM(40, DIM, 3), torch.nn.Linear(DIM, DIM)
    state = {f"lstm.{n}": t for n, t in lstm.state_dict().items()}
    state |= {f"linear.{n}": t for n, t in linear.state_dict().items()}
    state["similarity_weight"] = torch.ones(1)
    path = tmp_path_factory.mktemp("teacher") / "pretrained.pt"
    torch.save({"model_state": state}, path)
    return path


def noise(length):
    return (0.1 * RNG.standard_normal(length)).astype(np.float32)


def speech_set():
    ann = (noise(WINDOW), noise(3 * WINDOW))
    return SpeechSet(("s/ann", "s/bob"), (ann, (noise(WINDOW // 2), noise(WINDOW + 9))))


def test_embeddings_are_of_unit_length_and_not_negative(weights):
    found = SpeakerTeacher(weights)(np.stack([noise(WINDOW), noise(WINDOW)])).numpy()
    assert found.shape == (2, DIM)
    assert (found >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_mel_powers_are_librosa_s(weights):
    librosa = pytest.importorskip("librosa")
    wave = noise(WINDOW)
    seen = []
    teacher = SpeakerTeacher(weights)
    teacher.lstm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    teacher(wave[None])
    wanted = librosa.feature.melspectrogram(y=wave, sr=16000, n_fft=400, hop_length=160, n_mels=40)
    np.testing.assert_allclose(seen[0][0].numpy(), wanted.T[:160], rtol=2e-4, atol=1e-6)


def test_short_speech_is_repeated_and_long_speech_cut_with_overlap():
    short, long = noise(WINDOW // 2), noise(3 * WINDOW)
    (repeated,) = speaker_teacher._windows(short)
    np.testing.assert_array_equal(repeated, np.concatenate([short, short]))
    windows = speaker_teacher._windows(long)
    assert [len(w) for w in windows] == [WINDOW] * 5
    np.testing.assert_array_equal(windows[1], long[WINDOW // 2 : WINDOW // 2 + WINDOW])
    np.testing.assert_array_equal(windows[-1], long[-WINDOW:])


def test_quiet_speech_is_raised_and_loud_speech_left():
    quiet, loud = noise(WINDOW) / 100, noise(WINDOW)
    (raised,), (left,) = speaker_teacher._windows(quiet), speaker_teacher._windows(loud)
    assert np.sqrt(np.mean(raised**2)) == pytest.approx(10 ** (-30 / 20), rel=1e-3)
    np.testing.assert_array_equal(left, loud)


def test_lessons_by_hand():
    ann, bob = np.array([[3.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 2.0]])
    # means (2, 0) and (0, 2), centre (1, 1): (3, 0) + (2, 0) - 2 (1, 1) = (3, -2), and so on
    lessons = speaker_teacher._lessons([ann, bob])
    np.testing.assert_allclose(lessons[0][0], np.array([3, -2]) / np.sqrt(13), rtol=1e-6)
    np.testing.assert_allclose(lessons[0][1], np.array([1, -2]) / np.sqrt(5), rtol=1e-6)
    np.testing.assert_allclose(lessons[1][0], np.array([-2, 2]) / np.sqrt(8), rtol=1e-6)


def test_lessons_are_kept_for_the_same_speech_only(weights, tmp_path):
    speech, teacher = speech_set(), SpeakerTeacher(weights)
    lessons = teach_speakers(speech, tmp_path, teacher)
    assert [target.shape for target in lessons.targets] == [(2, DIM), (2, DIM)]
    again = teach_speakers(speech, tmp_path, None)  # no teacher: from the cache
    np.testing.assert_array_equal(lessons.targets[0], again.targets[0])
    teach_speakers(speech_set(), tmp_path, teacher)  # other noise
    assert len(list(tmp_path.iterdir())) == 2


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(speaker_teacher, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match="--no-deps resemblyzer"):
        SpeakerTeacher()


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "pretrained.pt"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(DataError, match="not the speaker encoder"):
        SpeakerTeacher(path)
    torch.save({"model_state": {"lstm.weight": torch.ones(2)}}, path)
    with pytest.raises(DataError, match="other weights"):
        SpeakerTeacher(path)
