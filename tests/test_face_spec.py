"""What of the face front end travels in the model file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgeid.runtime.errors import (
    ImageError,
    ModelFormatError,
)
from edgeid.runtime.face import FaceLimits, FaceSpec, network_input


def test_spec_round_trip() -> None:
    spec = FaceSpec(channels=3, crop=(0, 0, 112, 112), limits=FaceLimits(max_yaw=30))
    assert FaceSpec.from_dict(spec.to_dict()) == spec
    assert FaceSpec().crop == (0, 8, 112, 96)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 96},
        {"size": 112.0},
        {"channels": 2},
        {"channels": True},
        {"crop": [0, 8, 112]},
        {"crop": [0, 20, 112, 96]},
        {"crop": [-1, 0, 112, 96]},
        {"crop": [0, 0, 0, 96]},
        {"crop": "0,8"},
        {"crop": [0, 8.0, 112, 96]},
        {"mean": float("nan")},
        {"mean": "127"},
        {"mean": None},
        {"scale": 0},
        {"scale": -1},
        {"mirror": 1},
        {"limits": None},
        {"limits": {}},
        {"unknown": 1},
    ],
)
def test_spec_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(ModelFormatError):
        FaceSpec.from_dict({**FaceSpec().to_dict(), **change})


def test_files_from_before_mirrors_have_none() -> None:
    values = FaceSpec(mirror=True).to_dict()
    assert FaceSpec.from_dict(values).mirror
    del values["mirror"]
    assert FaceSpec.from_dict(values) == FaceSpec()


def test_spec_needs_every_key() -> None:
    for key in {*FaceSpec().to_dict()} - {"mirror"}:
        values = FaceSpec().to_dict()
        del values[key]
        with pytest.raises(ModelFormatError, match="exactly"):
            FaceSpec.from_dict(values)
    with pytest.raises(ModelFormatError):
        FaceLimits.from_dict({**FaceLimits().__dict__, "max_yaw": float("inf")})


def test_network_input_by_hand() -> None:
    crops = np.zeros((2, 112, 112), np.uint8)
    crops[1, 0, 8] = 255
    x = network_input(crops, FaceSpec())
    assert x.shape == (2, 1, 112, 96)
    assert x.dtype == np.float32
    assert x[0, 0, 0, 0] == -127.5 / 128
    assert x[1, 0, 0, 0] == 127.5 / 128


def test_network_input_channels() -> None:
    bgr = np.zeros((1, 112, 112, 3), np.uint8)
    bgr[..., 0] = 200
    three = FaceSpec(channels=3, crop=(0, 0, 112, 112), mean=0.0, scale=1.0)
    assert network_input(bgr, three)[0, :, 5, 5].tolist() == [0, 0, 200]  # R, G, B
    assert network_input(bgr[..., 0], three)[0, :, 5, 5].tolist() == [200, 200, 200]
    one = replace(three, channels=1)
    assert network_input(bgr, one)[0, 0, 5, 5] == pytest.approx(0.114 * 200, abs=1)


@pytest.mark.parametrize(
    "crops",
    [
        np.zeros((1, 112, 112), np.float32),
        np.zeros((112, 112), np.uint8),
        np.zeros((1, 96, 112), np.uint8),
        np.zeros((1, 112, 112, 4), np.uint8),
    ],
)
def test_network_input_refuses(crops: Any) -> None:
    with pytest.raises(ImageError):
        network_input(crops, FaceSpec())
