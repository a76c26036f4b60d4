"""The commands about people: enroll, verify, identify, list, remove, demo."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeid.command import (
    DONE,
    REJECTED,
    Commands,
    Outcome,
    add_command,
    add_model_options,
    load_model,
)

if TYPE_CHECKING:
    from edgeid import EdgeID, IdentifyResult, TemplateStore, VerifyResult


def add_commands(commands: Commands) -> None:
    """Add this file's commands to the parser."""
    parser = add_command(commands, "enroll", enroll, "enroll a person")
    parser.add_argument("user", help="name of the person")
    parser.add_argument("--image", action="append", default=[], help="a photo; may be repeated")
    parser.add_argument("--audio", action="append", default=[], help="a recording; repeatable")
    parser.add_argument("--replace", action="store_true", help="replace an earlier enrolment")
    _add_identity_options(parser)
    parser = add_command(commands, "verify", verify, "check that a person is who they say")
    parser.add_argument("--user", help="the person claimed; without it, anybody enrolled")
    _add_probe_options(parser)
    _add_identity_options(parser)
    parser = add_command(commands, "identify", identify, "find out who a person is")
    _add_probe_options(parser)
    _add_identity_options(parser)
    _add_store_options(add_command(commands, "list", list_users, "list the people enrolled"))
    parser = add_command(commands, "remove", remove, "remove a person and all their templates")
    parser.add_argument("user", help="name of the person")
    _add_store_options(parser)
    parser = add_command(commands, "demo", demo, "enroll and verify sample people")
    parser.add_argument("--people", type=Path, help="CSV of people to use (default: built in)")
    add_model_options(parser)


def _add_probe_options(parser: Any) -> None:
    parser.add_argument("--image", help="a photo of the face")
    parser.add_argument("--audio", help="a recording of the voice")


def _add_store_options(parser: Any) -> None:
    parser.add_argument("--store", help="the template store (default: templates.db in the home)")
    parser.add_argument("--home", type=Path, help="folder of key and store (default: EDGEID_HOME)")


def _add_identity_options(parser: Any) -> None:
    add_model_options(parser)
    _add_store_options(parser)
    parser.add_argument("--fmr", type=float, default=1e-3, help="false match rate (default 0.001)")
    parser.add_argument("--detector", help="haar, or a YuNet model (default: the model's own)")
    parser.add_argument(
        "--voice-alone",
        action="store_true",
        help="accept a voice without a face; does not conform to NIST SP 800-63B",
    )


@contextmanager
def _store(options: argparse.Namespace) -> Iterator[TemplateStore]:
    from edgeid.store import open_store

    with open_store(options.store, home=options.home) as store:
        yield store


@contextmanager
def _identity(options: argparse.Namespace) -> Iterator[EdgeID]:
    from edgeid import EdgeID, Policy

    # The model first: where it cannot be used, no key and no store are made.
    model = load_model(options)
    with _store(options) as store:
        yield EdgeID(model, store, options.fmr, policy=Policy(voice_alone=options.voice_alone))


def enroll(options: argparse.Namespace) -> Outcome:
    with _identity(options) as eid:
        result = eid.enroll(options.user, options.image, options.audio, options.replace)
    user = result.user
    done = "replaced" if result.replaced else "enrolled"
    return Outcome(result.to_dict(), [f"{done} {user.name}: {_counts(user.faces, user.voices)}"])


def verify(options: argparse.Namespace) -> Outcome:
    with _identity(options) as eid:
        result = eid.verify(options.image, options.audio, options.user)
    return _decision(result, result.score, result.threshold, result.fmr)


def identify(options: argparse.Namespace) -> Outcome:
    with _identity(options) as eid:
        result = eid.identify(options.image, options.audio)
    best = result.best
    score, threshold = (best.score, best.threshold) if best else (None, None)
    return _decision(result, score, threshold, result.fmr_bound)


def _decision(
    result: VerifyResult | IdentifyResult,
    score: float | None,
    threshold: float | None,
    fmr: float,
) -> Outcome:
    line = "accepted" if result.accepted else "rejected"
    line += f": {result.user or 'nobody'}"
    if score is not None and threshold is not None:
        line += f", score {score:.3f}, threshold {threshold:.3f}, false match rate {fmr:.2g}"
    lines = [line, *(f"  {reason.code}: {reason.message}" for reason in result.reasons)]
    return Outcome(result.to_dict(), lines, DONE if result.accepted else REJECTED)


def list_users(options: argparse.Namespace) -> Outcome:
    with _store(options) as store:
        users = store.users()
    lines = [f"{u.name}  {_counts(u.faces, u.voices)}, since {u.enrolled_at}" for u in users]
    return Outcome({"users": [u.to_dict() for u in users]}, lines or ["nobody is enrolled"])


def remove(options: argparse.Namespace) -> Outcome:
    with _store(options) as store:
        user = store.remove(options.user)
    return Outcome({"removed": user.to_dict()}, [f"removed {user.name}"])


def demo(options: argparse.Namespace) -> Outcome:
    from edgeid.demo import run_demo

    report = run_demo(options.people, options.model, options.engine)
    return Outcome(report.to_dict(), list(report.lines()), DONE if report.ok else REJECTED)


def _counts(faces: int, voices: int) -> str:
    return f"{faces} face{'s' * (faces != 1)}, {voices} voice{'s' * (voices != 1)}"
