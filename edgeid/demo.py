"""``edgeid demo``: enrol people, verify them and impostors, print every decision."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from edgeid.identity import EdgeID
from edgeid.probe import Embedder
from edgeid.protocol import read_people
from edgeid.runtime.errors import DataError, InputError

ENROLLED = 3  # samples of each kind that enrol a person; the others are probes
TOLERATED = 0.1  # share of decisions that may differ from what they should be


@dataclass(frozen=True)
class Person:
    """One person of the demo: encoded images and recordings, in order."""

    name: str
    images: tuple[bytes, ...]
    audio: tuple[bytes, ...]


@dataclass(frozen=True)
class Trial:
    """One visit: who came, whom they claimed to be, and what EdgeID made of it."""

    who: str
    claim: str
    accepted: bool
    score: float | None
    threshold: float | None
    face: float | None
    voice: float | None
    milliseconds: float
    note: str

    @property
    def right(self) -> bool:
        """Whether the decision is the one it should be."""
        return self.accepted == (self.who == self.claim)


@dataclass(frozen=True)
class DemoReport:
    """All decisions of the demo."""

    title: str
    fmr: float
    engine: str
    enrolled: int
    refused: tuple[str, ...]
    trials: tuple[Trial, ...]

    @property
    def ok(self) -> bool:
        """No impostor accepted, and nearly all decisions right."""
        false_accepts = any(t.accepted and t.who != t.claim for t in self.trials)
        wrong = sum(not t.right for t in self.trials)
        return bool(self.trials) and not false_accepts and wrong <= TOLERATED * len(self.trials)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        trials = [{**vars(trial), "right": trial.right} for trial in self.trials]
        return {
            "ok": self.ok,
            "title": self.title,
            "fmr": self.fmr,
            "engine": self.engine,
            "enrolled": self.enrolled,
            "refused": list(self.refused),
            "trials": trials,
        }

    def lines(self) -> list[str]:
        """A table for people."""
        head = f"{'who':10} {'claims':10} {'decision':9} {'score':>7} {'needed':>7}"
        head += f" {'face':>6} {'voice':>6} {'ms':>6}"
        lines = [
            f"{self.title}: {self.enrolled} enrolled, {self.engine} engine, "
            f"false match rate {self.fmr:g}",
            "",
            head,
            "-" * len(head),
        ]
        lines += [_row(trial) for trial in self.trials]
        right = sum(t.right for t in self.trials)
        genuine = [t for t in self.trials if t.who == t.claim]
        impostors = [t for t in self.trials if t.who != t.claim]
        median = sorted(t.milliseconds for t in self.trials)[len(self.trials) // 2]
        lines += [
            "",
            f"{right} of {len(self.trials)} decisions right: "
            f"{sum(t.accepted for t in genuine)} of {len(genuine)} genuine visits accepted, "
            f"{sum(t.accepted for t in impostors)} of {len(impostors)} impostors accepted; "
            f"median {median:.0f} ms",
        ]
        return lines + [f"not enrolled: {line}" for line in self.refused]


def _row(trial: Trial) -> str:
    decision = "accepted" if trial.accepted else "rejected"
    scores = [(trial.score, 7), (trial.threshold, 7), (trial.face, 6), (trial.voice, 6)]
    cells = " ".join(
        f"{'-':>{width}}" if value is None else f"{value:{width}.2f}" for value, width in scores
    )
    flag = "" if trial.right else "  <- wrong"
    note = f"  {trial.note}" if trial.note else ""
    return (
        f"{trial.who:10} {trial.claim:10} {decision:9} {cells} {trial.milliseconds:6.0f}"
        f"{flag}{note}"
    )


def run_demo(
    people: Path | None = None,
    model: str | Path | Embedder = "default",
    engine: str = "auto",
    fmr: float = 1e-3,
) -> DemoReport:
    """Enrol everybody with three photos and three utterances, then let everybody come back.

    Each further photo comes with a further utterance, once with the right claim, and once
    with the next person's name. The templates go to a temporary store.

    Args:
        people: None for the synthetic people in the package; else a ``people.csv`` (columns
            person, face, speaker) beside ``faces/portraits.zip`` and ``speech/dev.zip``.

    Raises:
        DataError: the people or their files are missing.
    """
    title = "Synthetic people" if people is None else "Chimeric people (portraits + speech)"
    group = list(synthetic_people() if people is None else real_people(people))
    with tempfile.TemporaryDirectory() as folder:
        store, key = Path(folder) / "demo.db", os.urandom(32)
        with EdgeID(model, store=store, key=key, fmr=fmr, engine=engine) as eid:
            refused = tuple(_enroll(eid, group))
            names = [user.name for user in eid.list()]
            trials = tuple(_visits(eid, [p for p in group if p.name in names]))
            name = getattr(getattr(eid.model, "engine", None), "name", engine)
    return DemoReport(title, fmr, str(name), len(names), refused, trials)


def _enroll(eid: EdgeID, group: list[Person]) -> Iterator[str]:
    for person in group:
        try:
            eid.enroll(person.name, images=person.images[:ENROLLED], audio=person.audio[:ENROLLED])
        except InputError as error:
            yield f"{person.name}: {error}"


def _visits(eid: EdgeID, group: list[Person]) -> Iterator[Trial]:
    for index, person in enumerate(group):
        other = group[(index + 1) % len(group)]
        probes = zip(person.images[ENROLLED:], person.audio[ENROLLED:], strict=False)
        for turn, (image, audio) in enumerate(probes):
            yield _visit(eid, person.name, person.name, image, audio)
            if turn == 0 and other is not person:
                yield _visit(eid, person.name, other.name, image, audio)


def _visit(eid: EdgeID, who: str, claim: str, image: bytes, audio: bytes) -> Trial:
    try:
        result = eid.verify(image, audio, user=claim)
    except InputError as error:  # a poor sample is no evidence: not accepted
        return Trial(who, claim, False, None, None, None, None, 0.0, error.code)
    return Trial(
        who,
        claim,
        result.accepted,
        result.score,
        result.threshold,
        result.face,
        result.voice,
        result.timings["total"],
        "",
    )


def synthetic_people() -> Iterator[Person]:
    """The people in ``edgeid/samples``: blended faces and synthetic voices, nobody real."""
    folder = Path(str(files("edgeid") / "samples"))
    try:
        listing = json.loads((folder / "people.json").read_text())["people"]
        for entry in listing:
            stems = [folder / f"{entry['name']}-{n + 1}" for n in range(entry["shots"])]
            yield Person(
                entry["name"],
                tuple(stem.with_suffix(".jpg").read_bytes() for stem in stems),
                tuple(stem.with_suffix(".ogg").read_bytes() for stem in stems),
            )
    except FileNotFoundError as error:
        raise DataError(f"the package has lost its samples: {error.filename}") from None


def real_people(listing: Path) -> Iterator[Person]:
    """People of a ``people.csv``; photos and utterances lie in the archives beside it."""
    for row in read_people(listing):
        yield Person(
            row.person,
            _members(listing.parent / "faces" / "portraits.zip", row.face),
            _members(listing.parent / "speech" / "dev.zip", row.speaker),
        )


def _members(archive: Path, folder: str) -> tuple[bytes, ...]:
    if not archive.is_file():
        raise DataError(f"no archive at {archive}")
    with ZipFile(archive) as members:
        files_in = [n for n in sorted(members.namelist()) if not n.endswith("/")]
        names = [name for name in files_in if name.split("/")[-2:-1] == [folder]]
        if len(names) <= ENROLLED:
            raise DataError(f"{archive}: {len(names)} files in {folder}, more than 3 are needed")
        return tuple(members.read(name) for name in names)
