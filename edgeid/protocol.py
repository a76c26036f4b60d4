"""Evaluation protocols in CSV files: face pairs, voice enrolment and trials, people."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from edgeid.runtime.errors import DataError
from edgeid.runtime.members import checked_name

MAX_CSV_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Pair:
    """Two images, of one person or of two; the fold is of the LFW protocol."""

    line: int
    fold: int
    a: str
    b: str
    same: bool


@dataclass(frozen=True)
class VoiceTrial:
    """One utterance that claims to be of an enrolled speaker of the same set."""

    line: int
    set: str
    claimed: str
    file: str
    target: bool


@dataclass(frozen=True)
class Person:
    """A chimeric person: a face identity and a speaker."""

    line: int
    person: str
    face: str
    speaker: str


@dataclass(frozen=True)
class Row:
    """One line of a CSV file: where it is and its values by column."""

    where: str
    line: int
    values: dict[str, str]

    def text(self, column: str) -> str:
        value = self.values[column].strip()
        if not value:
            raise DataError(f"{self.where}: {column} is empty")
        return value

    def name(self, column: str) -> str:
        """A file name inside the data set."""
        return checked_name(self.text(column), f"{self.where}: {column}")

    def flag(self, column: str) -> bool:
        value = self.text(column)
        if value not in ("0", "1"):
            raise DataError(f"{self.where}: {column} must be 0 or 1, got {value!r:.40}")
        return value == "1"

    def number(self, column: str) -> int:
        value = self.text(column)
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise DataError(f"{self.where}: {column} must be a whole number, got {value!r:.40}")
        return int(value)


def read_pairs(path: str | Path) -> list[Pair]:
    """Face pairs; columns fold, a, b, same. DataError names the line."""
    pairs = []
    for row in _rows(path, ("fold", "a", "b", "same")):
        pair = Pair(row.line, row.number("fold"), row.name("a"), row.name("b"), row.flag("same"))
        if pair.a == pair.b:
            raise DataError(f"{row.where}: {pair.a} is paired with itself")
        pairs.append(pair)
    return pairs


def read_enrolment(path: str | Path) -> dict[str, list[str]]:
    """Files that enrol each speaker; columns speaker, file. DataError names the line."""
    files: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    for row in _rows(path, ("speaker", "file")):
        speaker, file = row.text("speaker"), row.name("file")
        if file in owner:
            raise DataError(f"{row.where}: {file} enrols {owner[file]} already")
        owner[file] = speaker
        files.setdefault(speaker, []).append(file)
    return files


def read_trials(path: str | Path, enrolment: dict[str, list[str]]) -> list[VoiceTrial]:
    """Voice trials; columns set, claimed, file, target.

    Raises DataError, naming the line, for a claimed speaker who is not enrolled, a file that
    enrols somebody, and a file that is a target trial of two speakers.
    """
    enrolled = {file for files in enrolment.values() for file in files}
    speaker_of: dict[str, str] = {}
    trials = []
    for row in _rows(path, ("set", "claimed", "file", "target")):
        trial = VoiceTrial(
            row.line, row.text("set"), row.text("claimed"), row.name("file"), row.flag("target")
        )
        if trial.claimed not in enrolment:
            raise DataError(f"{row.where}: {trial.claimed} is not enrolled")
        if trial.file in enrolled:
            raise DataError(f"{row.where}: {trial.file} enrols a speaker and cannot test one")
        known = speaker_of.setdefault(trial.file, trial.claimed) if trial.target else None
        if known not in (None, trial.claimed):
            raise DataError(f"{row.where}: {trial.file} is of {known} by an earlier line")
        trials.append(trial)
    return trials


def read_people(path: str | Path) -> list[Person]:
    """Chimeric people; columns person, face, speaker, each name in one line only."""
    people = []
    seen: set[tuple[str, str]] = set()
    for row in _rows(path, ("person", "face", "speaker")):
        for column in ("person", "face", "speaker"):
            key = (column, row.text(column))
            if key in seen:
                raise DataError(f"{row.where}: {column} {key[1]} occurs a second time")
            seen.add(key)
        people.append(Person(row.line, row.text("person"), row.text("face"), row.text("speaker")))
    return people


def _rows(path: str | Path, columns: tuple[str, ...]) -> list[Row]:
    """All lines of a CSV file that has at least the given columns, and at least one line."""
    file = Path(path)
    rows = []
    line = 1
    try:
        if file.stat().st_size > MAX_CSV_BYTES:
            raise DataError(f"{file} is over 256 MiB")
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(header, columns, file)
            for values in reader:
                line = reader.line_num
                if not values:
                    continue
                where = f"{file}, line {line}"
                if len(values) != len(header):
                    raise DataError(f"{where}: {len(values)} values in {len(header)} columns")
                rows.append(Row(where, line, dict(zip(header, values, strict=True))))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file}, near line {line}: not CSV in UTF-8: {error}") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    if not rows:
        raise DataError(f"{file} has a header and no line")
    return rows


def _check_header(header: list[str], columns: tuple[str, ...], file: Path) -> None:
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(
            f"{file}, line 1: no column {', '.join(missing)}; expected {','.join(columns)}, "
            f"got {','.join(header)!r:.120}"
        )
    if len(set(header)) != len(header):
        raise DataError(f"{file}, line 1: a column occurs twice: {','.join(header)!r:.120}")
