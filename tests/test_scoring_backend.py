"""The scoring back end of a model file: what it computes, its bytes, and hostile sections."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeid.decision import compare
from edgeid.enrolment import check_agreement
from edgeid.probe import Probe
from edgeid.runtime.encoding import Dense, encode_float16, encode_float32, encode_int8
from edgeid.runtime.errors import CalibrationError, InputError, ModelError, ModelFormatError
from edgeid.runtime.face import FaceSpec
from edgeid.runtime.format import ModelFile, dump_model, read_model, write_model
from edgeid.runtime.golden import make_golden
from edgeid.runtime.graph import Entry, Flatten, Gemm, Graph
from edgeid.runtime.model import Model
from edgeid.runtime.reference import ReferenceEngine
from edgeid.runtime.score import Calibration, FmrCurve, similarity, similarity_matrix
from edgeid.runtime.scoring_backend import Backend
from edgeid.runtime.voice import VoiceSpec
from edgeid.templates import Templates

CURVE = FmrCurve((1.0, 0.01), (-1.0, 0.5), (0.0, 0.1), 300, 10, 20)


def backend(k=3, d=5, seed=0, scale=2.0, encode=encode_float32):
    rng = np.random.default_rng(seed)
    return Backend(
        encode(rng.standard_normal((k, d))),
        rng.standard_normal(k).astype(np.float32),
        rng.uniform(0, 4, k).astype(np.float32),
        scale,
    )


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_one_dimension_by_hand():
    # u = 2 x - 1 with psi 1: log(2 / sqrt(3)) - (u^2 + v^2) / 12 + u v / 3.
    one = Backend(encode_float32(np.array([[2.0]])), np.float32([1]), np.float32([1]), 4.0)
    constant = math.log(2 / math.sqrt(3))
    ratios = one.log_likelihood_ratio(np.array([[1.0]]), np.array([[1.0], [-1.0]]))
    assert ratios[0] == pytest.approx([constant - 1 / 6 + 1 / 3, constant - 10 / 12 - 1])
    assert one.scores(np.ones((1, 1)), np.ones((1, 1)))[0, 0] == pytest.approx(ratios[0, 0] / 4)


def test_an_uninformative_dimension_changes_nothing():
    informed = Backend(encode_float32(np.eye(1, 2)), np.zeros(1, np.float32), np.float32([3]), 1.0)
    more = Backend(encode_float32(np.eye(2)), np.zeros(2, np.float32), np.float32([3, 0]), 1.0)
    rows = unit(np.random.default_rng(0).standard_normal((4, 2)))
    a, b = (x.log_likelihood_ratio(rows, rows) for x in (informed, more))
    np.testing.assert_allclose(a, b)


@given(seed=st.integers(0, 10_000), n=st.integers(1, 4), q=st.integers(1, 4))
def test_scores_are_symmetric_bounded_below_and_do_not_see_lengths(seed, n, q):
    rng = np.random.default_rng(seed)
    own = backend(seed=seed, scale=0.05)
    a, b = rng.standard_normal((n, 5)), rng.standard_normal((q, 5))
    forth = similarity_matrix([row[None] for row in a], b, own)
    back = similarity_matrix([row[None] for row in b], 3 * a, own)
    np.testing.assert_allclose(forth, back.T, atol=1e-9)
    assert (forth >= -1).all()
    np.testing.assert_allclose(forth, own.scores(unit(a), unit(b)), atol=1e-9)


def test_several_templates_score_by_their_centroid():
    own = backend()
    templates = unit(np.random.default_rng(1).standard_normal((3, 5)))
    probe = unit(np.random.default_rng(2).standard_normal((1, 5)))
    centre = unit(templates.mean(axis=0, keepdims=True))
    expected = own.scores(centre, probe)[0, 0]
    assert similarity(templates, probe[0], own) == pytest.approx(expected)


def test_an_embedding_without_direction_scores_lowest():
    own = backend()
    assert similarity(np.zeros((1, 5)), np.ones(5), own) == -1
    assert similarity(np.ones((1, 5)), np.zeros(5), own) == -1


@pytest.mark.parametrize("size", [4, 6])
def test_another_dimension_is_refused(size):
    with pytest.raises(InputError, match="embeddings of 5 values"):
        similarity(np.ones((2, size)), np.ones(size), backend())
    with pytest.raises(InputError):
        similarity(np.ones((2, 5)), np.full(5, np.nan), backend())


@pytest.mark.parametrize("encode", [encode_float32, encode_float16, encode_int8])
def test_round_trip_through_json(encode):
    own = backend(encode=encode)
    again = Backend.from_dict(json.loads(json.dumps(own.to_dict())))
    assert again.to_dict() == own.to_dict()
    rows = unit(np.random.default_rng(3).standard_normal((4, 5)))
    np.testing.assert_array_equal(again.scores(rows, rows), own.scores(rows, rows))


def test_int8_keeps_the_section_small_and_the_scores():
    exact, small = (backend(128, 128, encode=e) for e in (encode_float32, encode_int8))
    assert len(json.dumps(small.to_dict())) < 25_000
    rows = unit(np.random.default_rng(4).standard_normal((50, 128)))
    ratios = [x.log_likelihood_ratio(rows, rows) for x in (exact, small)]
    assert np.corrcoef(ratios[0].ravel(), ratios[1].ravel())[0, 1] > 0.9999


# The model file


def tiny_model(calibration):
    """Both networks are one matrix: the face's 3 and the voice's 2 outputs."""
    rng = np.random.default_rng(0)
    spec = VoiceSpec()
    shapes = {"face": (1, 112, 96), "voice": (1, spec.frames, spec.mels)}
    entries, layers, tensors = [], [], {}
    for name, size in (("face", 3), ("voice", 2)):
        entries.append(Entry(name, f"{name}/x", shapes[name], f"{name}/y"))
        layers.append(Flatten(f"{name}/flat", (f"{name}/x",), f"{name}/f"))
        layers.append(Gemm(f"{name}/fc", (f"{name}/f",), f"{name}/y", weight=f"{name}/w"))
        pixels = math.prod(shapes[name])
        tensors[f"{name}/w"] = encode_float32(rng.standard_normal((size, pixels)) / 100)
    graph = Graph(tuple(entries), tuple(layers), tensors)
    engine = ReferenceEngine(graph)
    face = FaceSpec(channels=1, crop=(0, 8, 112, 96), mean=127.5, scale=1 / 128).to_dict()
    golden = [make_golden(engine, graph, entry.name, 1) for entry in entries]
    return ModelFile(graph, face, spec.to_dict(), calibration, golden)


def both(face=None, voice=None):
    return Calibration(
        CURVE, CURVE, face_backend=face or backend(3, 3), voice_backend=voice or backend(2, 2)
    )


def test_the_runtime_scores_with_the_file_s_back_end(tmp_path):
    path = tmp_path / "m.edgeid"
    write_model(tiny_model(both().to_dict()), path)
    model = Model.load(path, engine="reference")
    again = tmp_path / "again.edgeid"
    write_model(model.file, again)
    assert again.read_bytes() == path.read_bytes()
    crops = np.random.default_rng(0).integers(0, 255, (3, 112, 112)).astype(np.uint8)
    faces = model.embed_aligned(crops)
    windows = np.random.default_rng(1).standard_normal((2, 1, 112, 96)).astype(np.float32)
    voices = np.stack([model.embed_windows(windows[i : i + 1]) for i in range(2)])
    calibration = replace(model.calibration, face=CURVE)
    probe = Probe(faces[2], None, {})
    found = compare("ann", Templates(faces[:2]), probe, calibration)
    assert found is not None
    assert found.score == pytest.approx(similarity(faces[:2], faces[2], backend(3, 3)))
    assert found.score != pytest.approx(similarity(faces[:2], faces[2]))
    heard = compare("ann", Templates(voice=voices[:1]), Probe(None, voices[1], {}), calibration)
    assert heard is not None
    assert heard.score == pytest.approx(similarity(voices[:1], voices[1], backend(2, 2)))


def test_agreement_of_an_enrolment_is_by_the_back_end():
    # psi is so small that everything is about alike: a cosine of -1 scores about 0.
    blind = Backend(encode_float32(np.eye(2)), np.zeros(2, np.float32), np.float32([1e-4, 0]), 1.0)
    opposite = [np.float32([1, 0]), np.float32([-1, 0])]
    curve = FmrCurve((1.0, 0.01), (-1.0, -0.5), (0.0, 0.1), 300, 10, 20)
    check_agreement(Calibration(face=curve, face_backend=blind), "face", opposite, opposite)
    with pytest.raises(InputError, match="does not agree"):
        check_agreement(Calibration(face=curve), "face", opposite, opposite)


@pytest.mark.parametrize("kind", ["face", "voice"])
def test_a_back_end_of_another_dimension_is_refused_at_load(kind):
    file = tiny_model(both(**{kind: backend(2, 7)}).to_dict())
    with pytest.raises(ModelError, match=f"the {kind} network gives"):
        Model(file, engine="reference")


def test_a_back_end_without_a_network_is_refused_at_load():
    file = tiny_model(both().to_dict())
    graph = replace(
        file.graph,
        entries=file.graph.entries[:1],
        layers=file.graph.layers[:2],
        tensors={"face/w": file.graph.tensors["face/w"]},
    )
    alone = replace(file, graph=graph, voice=None, golden=file.golden[:1])
    with pytest.raises(ModelError, match="scores voice embeddings, but gives none"):
        Model(alone, engine="reference")


def test_fused_scores_have_no_back_end():
    with pytest.raises(CalibrationError, match="face or a voice"):
        both().backend("fused")
    assert Calibration().backend("voice") is None


def test_calibration_without_back_ends_is_written_as_before():
    assert "scoring" not in Calibration(face=CURVE).to_dict()


# Hostile sections


def changed(*path, value):
    data = copy.deepcopy(backend(encode=encode_int8).to_dict())
    target = data
    for key in path[:-1]:
        target = target[key]
    if value is None:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return data


def packed(array, **other):
    array = np.ascontiguousarray(array)
    text = base64.b64encode(array.tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": text} | other


F3 = np.ones(3, np.float32)
HOSTILE = {
    "no object": [],
    "nothing": {},
    "a name too many": {**backend().to_dict(), "code": "x"},
    "no projection": changed("projection", value=None),
    "projection is a list": changed("projection", value=[1]),
    "unknown encoding": changed("projection", "encoding", value="pickle"),
    "encoding is a list": changed("projection", "encoding", value=["int8"]),
    "scale is missing": changed("projection", "scale", value=None),
    "encoding of other parts": changed("projection", "encoding", value="dense"),
    "unknown dtype": changed("offset", value=packed(F3, dtype="object")),
    "offset float64": changed("offset", value=packed(F3.astype(np.float64))),
    "offset int8": changed("offset", value=packed(F3.astype(np.int8))),
    "offset float16": changed("offset", value=packed(F3.astype(np.float16))),
    "offset too long": changed("offset", value=packed(np.ones(4, np.float32))),
    "offset two axes": changed("offset", value=packed(np.ones((1, 3), np.float32))),
    "shape negative": changed("offset", "shape", value=[-3]),
    "shape zero": changed("offset", "shape", value=[0]),
    "shape true": changed("offset", "shape", value=[True]),
    "shape float": changed("offset", "shape", value=[3.0]),
    "shape huge": changed("offset", "shape", value=[2**40]),
    "shape text": changed("offset", "shape", value="3"),
    "data a number": changed("offset", "data", value=3),
    "data short": changed("offset", "data", value="AAAA"),
    "data not base64": changed("offset", "data", value="!" * 16),
    "data not ascii": changed("offset", "data", value="\u00e9" * 16),
    "data with blanks": changed("offset", "data", value="AAAA AAAAAAAAAAA"),
    "data with padding": changed("projection", "values", "data", value="A" * 19 + "="),
    "NaN": changed("offset", value=packed(F3 * np.nan)),
    "infinity": changed("variance_ratio", value=packed(F3 * np.inf)),
    "beyond a million": changed("offset", value=packed(F3 * 2e6)),
    "ratio negative": changed("variance_ratio", value=packed(np.float32([1, -1, 1]))),
    "ratio all zero": changed("variance_ratio", value=packed(F3 * 0)),
    "row scale zero": changed("projection", "scale", value=packed(F3 * 0)),
    "row scale huge": changed("projection", "scale", value=packed(F3 * 1e6)),
    "int8 -128": changed("projection", "values", value=packed(np.full((3, 5), -128, np.int8))),
    "more rows than columns": changed(
        "projection", "values", value=packed(np.ones((3, 2), np.int8))
    ),
    "score scale zero": changed("scale", value=0.0),
    "score scale negative": changed("scale", value=-1.0),
    "score scale tiny": changed("scale", value=1e-300),
    "score scale true": changed("scale", value=True),
    "score scale text": changed("scale", value="1"),
    "score scale huge": changed("scale", value=10**400),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_sections_are_refused(name):
    with pytest.raises(ModelFormatError):
        Backend.from_dict(HOSTILE[name])
    with pytest.raises(ModelFormatError):
        Calibration.from_dict({"scoring": {"face": HOSTILE[name]}})


def test_one_array_has_one_text():
    section = backend(2, 5).to_dict()
    text = section["offset"]["data"]  # 8 bytes: the last digit has four spare bits
    assert text.endswith("=")
    spare = chr(ord(text[-2]) + 1)
    assert base64.b64decode(text[:-2] + spare + "=") == base64.b64decode(text)
    section["offset"]["data"] = text[:-2] + spare + "="
    with pytest.raises(ModelFormatError, match="not base64 of 8 bytes"):
        Backend.from_dict(section)


@pytest.mark.parametrize("scoring", [None, [], {"iris": {}}, {"fused": backend().to_dict()}])
def test_hostile_scoring_is_refused(scoring):
    with pytest.raises(ModelFormatError):
        Calibration.from_dict({"scoring": scoring})


def test_a_hostile_section_of_a_file_is_refused_before_anything_is_scored():
    file = tiny_model({"scoring": {"face": HOSTILE["NaN"]}})
    data = dump_model(file)  # the format does not look into the section
    with pytest.raises(ModelFormatError, match="not finite"):
        Model(read_model(data), engine="reference")


@settings(deadline=None)
@given(data=st.data())
def test_damaged_sections_fail_in_no_other_way(data):
    section = backend(encode=encode_int8).to_dict()
    paths = [("offset",), ("offset", "data"), ("offset", "shape"), ("scale",), ("projection",)]
    paths += [("projection", "values", "data"), ("projection", "values", "dtype")]
    *most, last = data.draw(st.sampled_from(paths))
    target = section
    for key in most:
        target = target[key]
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    target[last] = data.draw(leaf | st.lists(leaf, max_size=3))
    with contextlib.suppress(ModelFormatError):
        own = Backend.from_dict(section)
        assert np.isfinite(own.scores(np.eye(5), np.eye(5))).all()


@pytest.mark.parametrize(
    "members",
    [
        {"projection": encode_float32(np.ones(3))},
        {"projection": encode_float32(np.ones((4, 3)))},
        {"projection": Dense(np.full((3, 5), 3e6, np.float32))},
        {"offset": np.ones(3)},
        {"offset": np.ones(2, np.float32)},
        {"variance_ratio": np.zeros(3, np.float32)},
        {"scale": math.nan},
        {"scale": 0.0},
    ],
)
def test_members_are_checked(members):
    with pytest.raises(ModelFormatError):
        replace(backend(), **members)
