from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from edgeid.policy import Policy
from edgeid.results import (
    Candidate,
    EnrollResult,
    IdentifyResult,
    Reason,
    User,
    VerifyResult,
)

ANN = User(name="ann", faces=2, voices=1, enrolled_at="2024-01-01T00:00:00+00:00")
CANDIDATE = Candidate(
    user="ann", accepted=True, score=0.7, threshold=0.6, modality="face", face=0.7, voice=None
)
VERIFIED = VerifyResult(
    **vars(CANDIDATE),
    fmr=1e-3,
    reasons=(Reason("no-voice-template", "decided on the face"),),
    quality={"face": {"sharpness": np.float32(0.5)}},  # type: ignore[dict-item]
    timings={"total": 1.5},
)


def identified(best: Candidate | None) -> IdentifyResult:
    return IdentifyResult(
        best=best, compared=3, fmr=1e-3, fmr_bound=1e-3, reasons=(), quality={}, timings={}
    )


ENROLLED = EnrollResult(user=ANN, replaced=False, quality={"face": ({"x": 1.0},)}, timings={})
ALL: list[Any] = [ANN, CANDIDATE, VERIFIED, identified(CANDIDATE), identified(None), ENROLLED]


@pytest.mark.parametrize("result", ALL, ids=lambda result: type(result).__name__)
def test_results_are_frozen_and_json_ready(result: Any) -> None:
    names = [field.name for field in dataclasses.fields(result)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(result, names[0], None)
    record = result.to_dict()
    assert set(names) <= set(record)
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_verification_as_a_dict() -> None:
    assert VERIFIED.to_dict() == {
        "accepted": True,
        "user": "ann",
        "score": 0.7,
        "threshold": 0.6,
        "fmr": 0.001,
        "modality": "face",
        "face": 0.7,
        "voice": None,
        "reasons": [{"code": "no-voice-template", "message": "decided on the face"}],
        "quality": {"face": {"sharpness": 0.5}},
        "timings": {"total": 1.5},
    }


def test_identification_accepts_only_an_accepted_candidate() -> None:
    rejected = dataclasses.replace(CANDIDATE, accepted=False)
    assert (identified(CANDIDATE).accepted, identified(CANDIDATE).user) == (True, "ann")
    assert (identified(rejected).accepted, identified(rejected).user) == (False, None)
    assert (identified(None).accepted, identified(None).user) == (False, None)
    assert identified(rejected).to_dict()["best"]["user"] == "ann"
    assert list(identified(None).to_dict())[:2] == ["accepted", "user"]


def test_default_policy_is_that_of_nist_sp_800_63b() -> None:
    policy = Policy()
    assert policy.allows("fused")
    assert policy.allows("face")
    assert not policy.allows("voice")
