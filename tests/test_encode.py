"""Encode: what is left in float32 gets smaller, what others have compressed stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeid.converters.quantisation.encode import Encode
from edgeid.converters.recipe import Context, run_recipe, stored_bytes
from edgeid.runtime.activation_scale import ActivationScale
from edgeid.runtime.codebook import make_codebook
from edgeid.runtime.encoding import Dense, Int8, encode_float16, encode_float32, encode_int8
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.graph import Entry, Gemm, Graph, merge_graphs
from edgeid.runtime.indexed import make_indexed
from tests.networks import inputs, residual_graph


def context(tmp_path, **samples: np.ndarray) -> Context:
    return Context(samples, tmp_path, progress=False)


def chain(**weights) -> Graph:
    """One (4, 4) layer after the other, each with a bias."""
    layers, tensors, x = [], dict(weights), "x"
    for name in weights:
        layers.append(Gemm(name, (x,), f"{name}:y", name, f"{name}.bias"))
        tensors[f"{name}.bias"] = encode_float32(np.linspace(0, 1, 4, dtype=np.float32))
        x = f"{name}:y"
    return Graph((Entry("face", "x", (4,), x),), tuple(layers), tensors)


def matrix(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, 4)).astype(np.float32)


@pytest.mark.parametrize(("weights", "kind", "size"), [("float16", Dense, 32), ("int8", Int8, 32)])
def test_only_float32_matrices_change(tmp_path, weights, kind, size):
    codewords = np.random.default_rng(0).standard_normal((2, 16, 2)).astype(np.float32)
    indices = np.arange(8).reshape(2, 1, 1, 4)
    graph = chain(
        plain=encode_float32(matrix(1)),
        half=encode_float16(matrix(2)),
        byte=encode_int8(matrix(3)),
        indexed=make_indexed(codewords[0, :, 0], np.arange(16).reshape(4, 4)),
        codebook=make_codebook(codewords, indices, (4, 4)),
    )
    after, (report,) = run_recipe([Encode(weights)], graph, context(tmp_path))
    changed = [name for name in graph.tensors if after.tensors[name] is not graph.tensors[name]]
    assert changed == ["plain"]
    plain = after.tensors["plain"]
    assert isinstance(plain, kind)
    assert plain.nbytes == size  # 16 halves; 16 bytes and 4 float32 scales
    assert np.abs(plain.decode() - matrix(1)).max() < 0.02
    assert report.figures["matrices"] == 1
    assert report.bytes_after == report.bytes_before - 64 + size


def test_vectors_that_do_no_harm_become_halves(tmp_path):
    graph = residual_graph(1)
    given = context(tmp_path, face=inputs(8))
    after, (report,) = run_recipe([Encode("int8", vectors=True)], graph, given)
    vectors = {name for name, tensor in graph.tensors.items() if len(tensor.shape) == 1}
    assert {after.tensors[name].array.dtype.name for name in vectors} == {"float16"}
    assert report.figures["vectors"] == len(vectors)
    assert report.figures["vector_cosine/face"] > 0.9999
    plain, _ = run_recipe([Encode("int8")], graph, given)
    saved = stored_bytes(plain) - stored_bytes(after)
    assert saved == sum(2 * graph.tensors[name].shape[0] for name in vectors)


def test_vectors_that_matter_stay(tmp_path):
    """The output is what is left of 2048.5 after 2048 is taken off; float16 has no 2048.5."""
    eye = np.eye(2, dtype=np.float32)
    layers = (Gemm("a", ("x",), "h", "w", "up"), Gemm("b", ("h",), "y", "w", "down"))
    graph = Graph(
        (Entry("face", "x", (2,), "y"),),
        layers,
        {
            "w": encode_float32(eye),
            "up": encode_float32(np.array([2048.5, 4097], np.float32)),
            "down": encode_float32(np.array([-2048, -4096], np.float32)),
        },
    )
    given = context(tmp_path, face=np.zeros((2, 2), np.float32))
    after, (report,) = run_recipe([Encode(vectors=True)], graph, given)
    assert after.tensors["up"] is graph.tensors["up"]
    assert report.figures["vectors"] == 0
    assert "stay float32" in report.text()[2]
    forced, _ = run_recipe([Encode(vectors=True, min_cosine=0.0)], graph, given)
    assert forced.tensors["up"].decode().tolist() == [2048, 4096]


def test_vectors_beyond_float16_and_of_entries_without_samples_stay(tmp_path):
    face = chain(w=encode_float32(matrix(0)))
    large = encode_float32(np.array([1e5, 1, 1, 1], np.float32))
    pair = merge_graphs(
        face=replace(face, tensors=face.tensors | {"w.bias": large}), voice=face, iris=face
    )
    x = np.ones((3, 4), np.float32)
    after, _ = run_recipe([Encode(vectors=True)], pair, context(tmp_path, face=x, iris=x))
    kinds = {name: tensor.array.dtype.name for name, tensor in after.tensors.items()}
    assert kinds == {
        **{f"{entry}/w": "float16" for entry in ("face", "voice", "iris")},
        **{"face/w.bias": "float32", "voice/w.bias": "float32", "iris/w.bias": "float16"},
    }


def test_nothing_to_do(tmp_path):
    graph = chain(byte=encode_int8(matrix(3)))
    after, (report,) = run_recipe([Encode("int8")], graph, context(tmp_path))
    assert after.tensors == graph.tensors
    assert report.figures["matrices"] == 0


def test_scales_and_outputs_are_kept(tmp_path):
    graph = replace(residual_graph(2), scales={"x": ActivationScale(0.5, 9)})
    after, _ = run_recipe([Encode()], graph, context(tmp_path))
    assert after.scales == graph.scales
    x = inputs(3)
    expected = make_engine(graph, "reference").run("face", x)
    assert make_engine(after, "reference").run("face", x) == pytest.approx(expected, abs=0.02)


def test_a_matrix_beyond_float16_is_named(tmp_path):
    graph = chain(w=encode_float32(1e6 * matrix(0)))
    with pytest.raises(GraphError, match=r"tensor 'w': float16 reaches 65504"):
        run_recipe([Encode()], graph, context(tmp_path))


def test_vectors_need_samples(tmp_path):
    with pytest.raises(DataError, match="measured on samples"):
        run_recipe([Encode(vectors=True)], residual_graph(0), context(tmp_path))


@pytest.mark.parametrize(
    "options", [{"weights": "int4"}, {"vectors": 1}, {"min_cosine": 1.5}, {"min_cosine": -0.1}]
)
def test_options_that_cannot_be(options):
    with pytest.raises(DataError):
        Encode(**options)


def test_json_form():
    step = Encode("int8", vectors=True, min_cosine=0.5)
    assert Encode.from_dict(step.to_dict()) == step
    with pytest.raises(DataError):
        Encode.from_dict({"pass": "encode", "weights": "int4"})
