"""The loaded model: shapes, checks, golden vectors, and the joint embedding."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import (
    AudioError,
    GoldenVectorError,
    ImageError,
    ModelError,
    ModelFormatError,
)
from edgeid.runtime.face import FaceSpec
from edgeid.runtime.format import ModelFile, write_model
from edgeid.runtime.golden import make_golden
from edgeid.runtime.graph import AveragePool, Entry, Flatten, Gemm, Graph, merge_graphs
from edgeid.runtime.model import Model
from edgeid.runtime.voice import VoiceSpec, cut_windows


def branch(entry, dim):
    """16x16 averages of a 112x96 input through a fixed matrix."""
    matrix = np.random.default_rng(dim).standard_normal((dim, 42))
    return Graph(
        entries=(Entry(entry, "x", (1, 112, 96), "y"),),
        layers=(
            AveragePool(name="pool", inputs=("x",), output="p", kernel=(16, 16), stride=(16, 16)),
            Flatten(name="flat", inputs=("p",), output="f"),
            Gemm(name="fc", inputs=("f",), output="y", weight="w"),
        ),
        tensors={"w": encode_float32(matrix)},
    )


@pytest.fixture(scope="module")
def model_file():
    graph = merge_graphs(face=branch("face", 5), voice=branch("voice", 7))
    engine = make_engine(graph, "reference")
    golden = [make_golden(engine, graph, entry, 1) for entry in ("face", "voice")]
    return ModelFile(
        graph=graph, face=FaceSpec().to_dict(), voice=VoiceSpec().to_dict(), golden=golden
    )


@pytest.fixture(scope="module", params=["reference", "onnxruntime"])
def model(request, model_file):
    if request.param == "onnxruntime":
        pytest.importorskip("onnxruntime")
    return Model(model_file, engine=request.param)


def test_embeddings_are_unit_vectors_of_the_networks_dimension(model):
    crops = np.random.default_rng(0).integers(0, 255, (40, 112, 112)).astype(np.uint8)
    embeddings = model.embed_aligned(crops)
    assert embeddings.shape == (40, 5)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_face_embedding_by_hand(model):
    crop = np.random.default_rng(1).integers(0, 255, (112, 112)).astype(np.uint8)
    pooled = (crop[:, 8:104].astype(float) - 127.5) / 128
    pooled = pooled.reshape(7, 16, 6, 16).mean((1, 3)).ravel()
    expected = np.random.default_rng(5).standard_normal((5, 42)) @ pooled
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(model.embed_aligned(crop[None])[0], expected, atol=1e-5)


def test_a_mirroring_model_averages_a_face_and_its_mirror_image(model, model_file):
    crops = np.random.default_rng(1).integers(0, 255, (3, 112, 112)).astype(np.uint8)
    mirroring = replace(model_file, face=FaceSpec(mirror=True).to_dict())
    both = Model(mirroring, engine=model.engine.name)
    once, flipped = model.embed_aligned(crops), model.embed_aligned(crops[:, :, ::-1])
    expected = (once + flipped) / np.linalg.norm(once + flipped, axis=1, keepdims=True)
    np.testing.assert_allclose(both.embed_aligned(crops), expected, atol=1e-5)
    np.testing.assert_allclose(both.embed_aligned(crops[:, :, ::-1]), expected, atol=1e-5)
    windows = np.random.default_rng(2).standard_normal((2, 1, 112, 96)).astype(np.float32)
    joint = both.embed_prepared(crops[1], windows)
    np.testing.assert_allclose(joint.face, expected[1], atol=1e-5)
    np.testing.assert_allclose(joint.voice, model.embed_windows(windows), atol=1e-5)
    assert both.embed_aligned(crops[:0]).shape == (0, 5)


def test_voice_embedding_is_the_mean_over_windows(model):
    speech = np.random.default_rng(2).standard_normal(60000).astype(np.float32)
    windows = cut_windows(speech, VoiceSpec())
    assert len(windows) > 2
    pooled = windows[:, 0].reshape(-1, 7, 16, 6, 16).mean((2, 4)).reshape(len(windows), -1)
    expected = np.random.default_rng(7).standard_normal((7, 42)) @ pooled.mean(0)
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(model.embed_windows(windows), expected, atol=1e-5)


def test_no_crops_give_no_embeddings(model):
    assert model.embed_aligned(np.zeros((0, 112, 112), np.uint8)).shape == (0, 5)


@pytest.mark.parametrize(
    "crops",
    [
        np.zeros((112, 112), np.uint8),
        np.zeros((1, 112, 112), np.float32),
        np.zeros((1, 112, 96), np.uint8),
        np.zeros((1, 112, 112, 3), np.uint8),
        [[0]],
    ],
)
def test_wrong_crops_are_told(model, crops):
    with pytest.raises(ImageError, match="112"):
        model.embed_aligned(crops)


def test_nan_audio_is_told(model):
    with pytest.raises(AudioError, match="NaN"):
        model.embed_voice(np.full(16000, np.nan, np.float32), 16000)


def test_a_flat_crop_has_no_direction(model_file):
    """Mid-grey pools to zero only at 127.5, so make the network answer zero."""
    zero = copy.deepcopy(model_file)
    for name, tensor in zero.graph.tensors.items():
        zero.graph.tensors[name] = encode_float32(0 * tensor.decode())
    with pytest.raises(ModelError):
        Model(zero)


def test_a_model_without_landmarks_takes_aligned_crops_only(model):
    with pytest.raises(ModelError, match="aligned crops only"):
        model.embed_face(np.zeros((200, 200), np.uint8))


def test_engine_that_answers_otherwise_is_refused(model_file):
    golden = copy.deepcopy(model_file.golden)
    golden[0]["embedding"][0] += 1.0
    with pytest.raises(GoldenVectorError, match="face"):
        Model(replace(model_file, golden=golden))


def test_a_network_without_golden_vector_is_refused(model_file):
    with pytest.raises(GoldenVectorError, match="voice"):
        Model(replace(model_file, golden=model_file.golden[:1]))


def test_preprocessing_must_fit_the_network(model_file):
    spec = replace(VoiceSpec(), mels=64).to_dict()
    with pytest.raises(ModelError, match="voice network takes"):
        Model(replace(model_file, voice=spec))
    with pytest.raises(ModelFormatError, match="voice section"):
        Model(replace(model_file, voice={"rate": 1}))
    with pytest.raises(ModelError, match="neither"):
        Model(replace(model_file, face=None, voice=None))


def test_missing_parts_are_told(model_file):
    golden = model_file.golden
    face_only = Model(replace(model_file, voice=None, golden=golden))
    with pytest.raises(ModelError, match="no voice network"):
        face_only.embed_voice(np.zeros(16000, np.float32), 16000)


def test_load_reads_a_file_and_names_a_missing_one(model_file, tmp_path):
    write_model(model_file, tmp_path / "m.edgeid")
    model = Model.load(tmp_path / "m.edgeid", engine="reference", threads=1)
    assert model.embed_aligned(np.ones((1, 112, 112), np.uint8)).shape == (1, 5)
    with pytest.raises(ModelError, match=r"none\.edgeid"):
        Model.load(tmp_path / "none.edgeid")
