"""Training end to end on a handful of made samples: it learns, stops, resumes, refuses."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

import cv2  # noqa: E402
import soundfile  # noqa: E402

from edgeid.converters.graphs.torch_graph import export_torch  # noqa: E402
from edgeid.converters.networks.cnn20 import INPUT_SHAPE  # noqa: E402
from edgeid.converters.training import (  # noqa: E402
    speaker_distillation,
    speaker_teacher,
    training,
)
from edgeid.converters.training import speech as training_speech  # noqa: E402
from edgeid.converters.training.checkpoint import (  # noqa: E402
    Checkpoint,
    load_network,
    read_checkpoint,
)
from edgeid.converters.training.speech import SpeechSampler, SpeechSet  # noqa: E402
from edgeid.converters.training.training import train_face, train_voice  # noqa: E402
from edgeid.converters.training.training_loop import TrainOptions  # noqa: E402
from edgeid.runtime.errors import DataError  # noqa: E402
from edgeid.runtime.format import ModelFile, write_model  # noqa: E402
from edgeid.runtime.graph import merge_graphs  # noqa: E402
from edgeid.runtime.voice import VoiceSpec  # noqa: E402

KINDS = ("face", "voice")
FAST = TrainOptions(steps=4, batch=8, rate=0.05, save_every=2)


def teacher_network(path):
    """N x 3 x 112 x 112 -> N x 8: 28-pixel averages through a fixed random matrix."""
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    matrix = np.random.default_rng(0).standard_normal((48, 8)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[28, 28], strides=[28, 28]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("x", floats, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("y", floats, ["n", 8])],
        [onnx.numpy_helper.from_array(matrix, "w")],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


@pytest.fixture
def data(tmp_path):
    """A data folder with twelve made people, and a teacher beside it."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    (root / "faces").mkdir(parents=True)
    (root / "speech").mkdir()
    (tmp_path / "models").mkdir()
    teacher_network(tmp_path / "models" / "mobilefacenet.onnx")
    with zipfile.ZipFile(root / "faces" / "train.zip", "w") as faces:
        for person in range(12):
            look = rng.integers(0, 255, (8, 8)).astype(np.uint8)
            for shot in range(3):
                noisy = cv2.resize(look, (112, 112)) // 2 + rng.integers(0, 60, (112, 112))
                encoded = cv2.imencode(".png", noisy.astype(np.uint8))[1]
                faces.writestr(f"made/{person}/{shot}.png", encoded.tobytes())
    for name in ("train_sentences", "train_words", "noise"):
        with zipfile.ZipFile(root / "speech" / f"{name}.zip", "w") as speech:
            for person in range(12):
                speech.writestr(f"{name}/{person}/0.wav", buzz(100 + 20 * person, rng))
    return root


def buzz(pitch, rng):
    time = np.arange(24000) / 16000
    wave = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, 15))
    wave = 0.2 * wave * np.clip(np.sin(2 * np.pi * 3 * time), 0, 1)
    wave += 1e-3 * rng.standard_normal(len(time))
    file = io.BytesIO()
    soundfile.write(file, wave.astype(np.float32), 16000, format="WAV")
    return file.getvalue()


def run(kind, data, out, options, work):
    if kind == "voice":
        return train_voice(out, options, width=0.125, dim=8, data=data)
    return train_face(out, options, width=0.125, dim=8, views=2, data=data, work=work)


@pytest.mark.parametrize(
    ("kind", "optimiser"), [("face", "sgd"), ("face", "muon"), ("voice", "muon")]
)
def test_a_stopped_training_resumes_to_the_same_network(
    kind, optimiser, data, tmp_path, monkeypatch
):
    options = replace(FAST, optimiser=optimiser)
    whole = run(kind, data, tmp_path / "whole.pt", options, tmp_path)

    saved = Checkpoint.save

    def stop_after_first(self, step):
        saved(self, step)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", stop_after_first)
    with pytest.raises(KeyboardInterrupt):
        run(kind, data, tmp_path / "broken.pt", options, tmp_path)
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "broken.pt")["step"] == 2
    resumed = run(kind, data, tmp_path / "broken.pt", options, tmp_path)
    a, b = (read_checkpoint(p)["network"] for p in (whole, resumed))
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-4, atol=1e-5, msg=name)
    network = load_network(whole)
    assert not network.training
    assert network.average_time == (kind == "voice")


def test_all_objectives_can_be_learnt():
    torch.manual_seed(0)
    x = torch.randn(8, 1, 112, 96)
    target = torch.nn.functional.normalize(torch.randn(8, 8))
    said = torch.nn.functional.normalize(torch.randn(8, speaker_teacher.DIM))
    label = torch.tensor([0, 1, 2, 3, 0, 1, -1, -1])
    for objective, batch in (
        (training.FaceObjective(0.125, 8, 4), (x, target, label)),
        (training.VoiceObjective(0.125, 8, 4), (x, label.clamp(min=0), torch.zeros(8, 0))),
        (training.VoiceObjective(0.125, 8, 4, lesson=8), (x, label.clamp(min=0), target)),
        (speaker_distillation.SpeakerDistillation(0.125, 8), (x, said)),
    ):
        optimiser = torch.optim.SGD(objective.parameters(), 0.05, momentum=0.9)
        losses = []
        for _ in range(15):
            loss = objective.loss(batch, 1.0)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]


def test_a_window_without_a_lesson_changes_nothing_of_the_others():
    torch.manual_seed(0)
    objective = training.VoiceObjective(0.125, 8, 4, lesson=6).eval()
    x, label = torch.randn(4, 1, 112, 96), torch.tensor([0, 1, 2, 3])
    target = torch.nn.functional.normalize(torch.randn(4, 6))
    partly = target * torch.tensor([1.0, 1.0, 0.0, 0.0])[:, None]
    none, some, all_ = (
        objective.loss((x, label, t), 1.0).item() for t in (0 * target, partly, target)
    )
    unit = torch.nn.functional.normalize(objective.network(x)).detach()
    cosine = torch.cosine_similarity(objective.foretell(unit), target).detach()

    def lesson(count):
        """Of the first windows: as foretold, and the similarities among them."""
        pairs = [(i, j) for i in range(count) for j in range(count)]
        misses = [float(unit[i] @ unit[j] - target[i] @ target[j]) ** 2 for i, j in pairs]
        foretold = 1 - float(cosine[:count].mean())
        structure = 5 * sum(misses) / len(misses)
        return training.LESSON_WEIGHT * count / 4 * (foretold + structure)

    assert some - none == pytest.approx(lesson(2), rel=1e-4)
    assert all_ - none == pytest.approx(lesson(4), rel=1e-4)


def test_a_finished_network_is_trained_further(data, tmp_path):
    first = run("voice", data, tmp_path / "a.pt", FAST, tmp_path)
    still = replace(FAST, start=first, rate=1e-12)
    second = run("voice", data, tmp_path / "b.pt", still, tmp_path)
    a, b = (read_checkpoint(path)["objective"]["head.weight"] for path in (first, second))
    torch.testing.assert_close(a, b)
    with pytest.raises(DataError, match="another training"):
        run("face", data, tmp_path / "c.pt", replace(FAST, start=first), tmp_path)


def test_a_share_of_the_start_is_kept(data, tmp_path):
    first = run("voice", data, tmp_path / "a.pt", FAST, tmp_path)
    further = replace(FAST, start=first, seed=5)
    x = torch.randn(6, 1, 112, 96)
    unit = torch.nn.functional.normalize
    start = unit(load_network(first)(x)).detach()

    def nearness(keep):
        out = tmp_path / f"{keep}.pt"
        second = load_network(run("voice", data, out, replace(further, keep=keep), tmp_path))
        return float((unit(second(x)).detach() * start).sum(1).mean())

    gone, half, kept = (nearness(keep) for keep in (0.0, 0.5, 1.0))
    assert gone < half < kept
    assert kept > 0.999  # the start itself


def test_a_share_to_keep_is_checked_before_anything_is_read(tmp_path):
    with pytest.raises(DataError, match=r"keep 0\.5 needs a network to start from"):
        TrainOptions(keep=0.5)
    for keep in (-0.1, 1.5, float("nan")):
        with pytest.raises(DataError, match=r"keep lies in 0\.\.1"):
            TrainOptions(start=tmp_path / "start.pt", keep=keep)


def test_a_network_of_a_model_file_is_trained_further(data, tmp_path):
    first = {kind: run(kind, data, tmp_path / f"{kind}.pt", FAST, tmp_path) for kind in KINDS}
    model = tmp_path / "m.edgeid"
    graphs = {n: export_torch(load_network(p), INPUT_SHAPE, n) for n, p in first.items()}
    write_model(ModelFile(merge_graphs(**graphs)), model)
    x = torch.randn(6, 1, 112, 96)
    for kind, path in first.items():
        still = replace(FAST, start=model, rate=1e-12, steps=1)
        second = load_network(run(kind, data, tmp_path / f"{kind}-2.pt", still, tmp_path))
        unit = torch.nn.functional.normalize
        a, b = (unit(network(x)).detach() for network in (load_network(path), second))
        assert (a * b).sum(1).min() > 0.98  # but for statistics of other batches
    further = replace(FAST, start=model)
    with pytest.raises(DataError, match="another training"):
        train_voice(tmp_path / "v.pt", further, width=0.25, dim=8, data=data)


def test_the_voice_network_copies_a_teacher_without_labels(data, tmp_path, monkeypatch):
    """The teacher says how loud which of 192 stretches of time are, level and noise aside."""

    class Loudness:
        def __call__(self, waves):
            cut = waves[:, : waves.shape[1] // 192 * 192].reshape(len(waves), 192, -1)
            return torch.nn.functional.normalize(torch.from_numpy((cut**2).mean(axis=2)))

    monkeypatch.setattr(speaker_teacher, "SpeakerTeacher", Loudness)

    def distil(name, options, stretches=40):
        return speaker_distillation.distil_voice(
            tmp_path / name,
            options,
            stretches=stretches,
            width=0.125,
            dim=8,
            data=data,
            strength=0.2,
            work=tmp_path,
        )

    with pytest.raises(DataError, match="got 0"):
        distil("none.pt", FAST, stretches=0)
    short = replace(FAST, steps=2, save_every=1)
    network = load_network(distil("a.pt", short))
    again = load_network(distil("b.pt", short))
    assert network.average_time
    for ours, theirs in zip(network.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(DataError, match="checkpoint of another training"):
        run("voice", data, tmp_path / "a.pt", FAST, tmp_path)

    # from labels to lessons and back: the network goes along, heads of the other kind do not
    named = run("voice", data, tmp_path / "c.pt", short, tmp_path)
    further = distil("d.pt", replace(short, start=named, rate=1e-12))
    back = run(
        "voice", data, tmp_path / "e.pt", replace(short, start=further, rate=1e-12), tmp_path
    )
    for name, weight in load_network(named).named_parameters():
        for path in (further, back):
            torch.testing.assert_close(load_network(path).get_parameter(name), weight)
    with pytest.raises(DataError, match=r"another training.*average_time"):
        run("face", data, tmp_path / "f.pt", replace(short, start=further), tmp_path)


def test_lessons_of_acted_speech_are_those_of_the_speaker_at_that_speed():
    word = np.ones(16000, np.float32)
    speech = SpeechSet(("emodb/ann", "emodb/bob", "other/cem"), ((word,), (word,), (word,)))
    sampler, seed = SpeechSampler(speech, (), VoiceSpec()), speaker_distillation.SEED
    lessons = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    found = speaker_distillation.steady_lessons(lessons, sampler, seed)
    groups = {}
    for k in range(300):
        speaker, speed = sampler.somebody(np.random.default_rng((seed, k)))
        groups.setdefault((speaker, round(speed, 1)), []).append(k)
    assert len(groups) == 15  # three speakers, five speeds
    for (speaker, _), same in groups.items():
        if speaker == 2:
            np.testing.assert_array_equal(found[same], lessons[same])
        else:
            mean = lessons[same].mean(axis=0)
            wanted = np.tile(mean / np.linalg.norm(mean), (len(same), 1))
            np.testing.assert_allclose(found[same], wanted, rtol=1e-5)


def test_what_is_said_of_a_stretch_goes_with_that_stretch(data, tmp_path, monkeypatch):
    """Each stretch is told by its number: the teacher of number k says the k-th unit vector."""
    drawn = []

    def caught(_objective, draw, _options, out, _title):
        drawn.append(draw(np.random.default_rng(0)))
        return out

    def lessons(sampler, count, seed, _cache):
        waves = [sampler.stretch(np.random.default_rng((seed, k))) for k in range(count)]
        plain = replace(sampler, strength=0.0)
        heard.extend(plain.hear(wave[None], np.random.default_rng(0))[0, 0] for wave in waves)
        return np.eye(count, speaker_teacher.DIM, dtype=np.float32)

    heard = []
    monkeypatch.setattr(speaker_distillation, "train", caught)
    monkeypatch.setattr(speaker_distillation, "teach_stretches", lessons)
    monkeypatch.setattr(training_speech, "WORD_SHARE", 0.0)
    speaker_distillation.distil_voice(
        tmp_path / "x.pt", FAST, stretches=12, data=data, strength=0.0, work=tmp_path
    )
    ((windows, targets),) = drawn
    assert windows.shape == (FAST.batch, 1, 112, 96)
    for window, target in zip(windows.numpy(), targets.numpy(), strict=True):
        np.testing.assert_allclose(window[0], heard[int(target.argmax())], atol=1e-5)


def test_another_training_is_not_resumed(data, tmp_path):
    run("voice", data, tmp_path / "a.pt", FAST, tmp_path)
    with pytest.raises(DataError, match="checkpoint of another training"):
        run("face", data, tmp_path / "a.pt", FAST, tmp_path)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04"])
def test_what_is_not_a_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a training checkpoint"):
        read_checkpoint(path)


def test_a_checkpoint_with_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "was-here"), "w"))

    torch.save({"network": Evil(), "shape": {}, "step": 1}, tmp_path / "evil.pt")
    with pytest.raises(DataError):
        read_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "was-here").exists()


def test_missing_data_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEID_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="set EDGEID_DATA"):
        train_voice(tmp_path / "v.pt", FAST)


def test_the_network_input_of_training_is_that_of_the_device():
    from edgeid.converters.convert import face_spec
    from edgeid.converters.networks.cnn20 import INPUT_SHAPE
    from edgeid.runtime.face import network_input
    from edgeid.runtime.graph import Entry, Graph

    crops = np.random.default_rng(0).integers(0, 255, (2, 112, 112)).astype(np.uint8)
    spec = face_spec(Graph((Entry("face", "x", INPUT_SHAPE, "x"),), (), {}))
    ours = training.face_input(crops).numpy()
    np.testing.assert_allclose(network_input(crops, spec), ours, atol=1e-6)
