from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgeid.fingerprint import model_fingerprint
from edgeid.runtime.encoding import encode_float16, encode_float32
from edgeid.runtime.format import ModelFile
from edgeid.runtime.graph import Relu


@pytest.fixture
def file(fake_model: Any) -> ModelFile:
    found = fake_model.file
    assert isinstance(found, ModelFile)
    return replace(found, face={"mean": 127.5})


def test_fingerprint_ignores_what_embeddings_do_not_depend_on(file: ModelFile) -> None:
    other = replace(file, calibration={}, card={"terms": "x"}, recipe=["y"], model_version=7)
    assert model_fingerprint(other) == model_fingerprint(file)
    assert len(model_fingerprint(file)) == 64


def test_fingerprint_follows_weights_layers_and_preprocessing(file: ModelFile) -> None:
    weight = np.ones((2, 2), np.float32)
    changed = weight.copy()
    changed[1, 1] += 1e-6
    graph = file.graph
    graphs = [
        replace(graph, tensors={"w": encode_float32(changed)}),
        replace(graph, tensors={"w": encode_float16(weight)}),
        replace(graph, tensors={"w": encode_float32(weight), "v": encode_float32(weight)}),
        replace(graph, layers=(*graph.layers, Relu("r", ("y",), "z"))),
    ]
    files = [file, *(replace(file, graph=each) for each in graphs)]
    files += [replace(file, face={"mean": 0}), replace(file, voice={})]
    assert len({model_fingerprint(each) for each in files}) == len(files)
