from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edgeid.evaluation import evaluate_faces, evaluate_people, evaluate_voices
from edgeid.extraction import EvaluatedModel
from edgeid.metrics import equal_error_rate
from edgeid.report import Det
from edgeid.roc import Roc, roc
from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.errors import AudioError, DataError, ImageError, NoFaceError, SilenceError
from edgeid.runtime.face_quality import FaceQuality
from edgeid.runtime.fusion import QualityTerm
from edgeid.runtime.members import Members
from edgeid.runtime.score import Backend, Calibration, FmrCurve, Fusion
from edgeid.runtime.voice import VoiceQuality

DATA = Path(
    os.environ.get("EDGEID_DATA", Path(__file__).resolve().parent.parent / "../shared/data")
)
DIMENSION = 12
Row = NDArray[np.float32]
CURVE = FmrCurve((1.0, 0.01, 0.001), (-1.0, 0.5, 0.7), (0.0, 0.1, 0.2), 3000, 50, 20)
CALIBRATION = Calibration(CURVE, CURVE, CURVE, Fusion(0.0, 0.5, 0.5))
SCORED = dataclasses.replace(
    CALIBRATION,
    **{
        f"{kind}_backend": Backend(
            encode_float32(np.random.default_rng(seed).standard_normal((5, DIMENSION))),
            np.linspace(-1, 1, 5, dtype=np.float32),
            np.linspace(0, 4, 5, dtype=np.float32),
            10.0,
        )
        for seed, kind in enumerate(("face", "voice"))
    },
)
"""As CALIBRATION, and embeddings are scored by back ends in place of the cosine."""
both_ways = pytest.mark.parametrize("calibration", [CALIBRATION, SCORED], ids=["cosine", "scored"])


@dataclasses.dataclass(frozen=True)
class FakeFace:
    """A face whose sharpness is half the grey level in the last row of pixels, over 255."""

    crop: NDArray[np.uint8]

    @property
    def quality(self) -> FaceQuality:
        sharpness = float(self.crop[-1, 0]) / 510
        return FaceQuality(35.0, sharpness, 128.0, 40.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1)


@dataclasses.dataclass(frozen=True)
class FakeVoice:
    windows: Row
    quality: VoiceQuality


class FakeModel:
    """Images carry their embedding in the first row of pixels, recordings as JSON."""

    def __init__(self, calibration: Calibration | None = None) -> None:
        self.calibration = calibration
        self.batches: list[int] = []

    def embed_aligned(self, crops: NDArray[np.uint8]) -> Row:
        assert crops.dtype == np.uint8
        assert crops.shape[1:] == (112, 112)
        self.batches.append(len(crops))
        rows = crops[:, 0, :DIMENSION].astype(np.float32) - 128
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)

    def read_face(self, image: bytes, checks: bool = True, several: str = "refuse") -> FakeFace:
        assert (checks, several) == (False, "largest")
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE)
        if pixels is None:
            raise ImageError("not an image")
        if pixels.max() == 0:
            raise NoFaceError("no face")
        return FakeFace(np.asarray(pixels, np.uint8))

    def read_voice(self, audio: bytes, rate: int | None = None, checks: bool = True) -> FakeVoice:
        assert (rate, checks) == (None, False)
        try:
            row = np.array(json.loads(audio), np.float32)
        except ValueError as error:
            raise AudioError("not a recording") from error
        if not row.any():
            raise SilenceError("silence")
        return FakeVoice(row, VoiceQuality(3.0, 1.0 + abs(float(row[0])), 20.0, 0.0))

    def embed_windows(self, windows: Row) -> Row:
        return np.asarray(windows / np.linalg.norm(windows), np.float32)


def _png(embedding: NDArray[Any], size: int = 112) -> bytes:
    pixels = np.full((size, size), 7, np.uint8)
    pixels[0, :DIMENSION] = np.clip(np.rint(128 + 40 * embedding), 0, 255)
    return bytes(cv2.imencode(".png", pixels)[1])


def _black() -> bytes:
    return bytes(cv2.imencode(".png", np.zeros((112, 112), np.uint8))[1])


def _decoded(embedding: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.clip(np.rint(128 + 40 * embedding), 0, 255) - 128, np.float32)


def _zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _people(count: int, samples: int, noise: float, seed: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {
        f"n{i:02d}": rng.standard_normal(DIMENSION)
        + noise * rng.standard_normal((samples, DIMENSION))
        for i in range(count)
    }


def _csv(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@dataclasses.dataclass(frozen=True)
class Pairs:
    pairs: Path
    images: Path
    embeddings: dict[str, NDArray[Any]]
    rows: list[tuple[int, str, str, bool]]


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    """Two folds of ten people each; each person with three images."""
    people = _people(20, 3, 0.7, 0)
    embeddings = {f"{n}/{i}.png": row for n, rows in people.items() for i, row in enumerate(rows)}
    rows: list[tuple[int, str, str, bool]] = []
    for fold in (4, 5):
        names = sorted(people)[(fold - 4) * 10 : (fold - 3) * 10]
        for k, name in enumerate(names):
            rows += [(fold, f"{name}/0.png", f"{name}/{i}.png", True) for i in (1, 2)]
            for step in (1, 2, 3, 4):
                rows.append((fold, f"{name}/0.png", f"{names[(k + step) % 10]}/1.png", False))
    lines = [f"{fold},{a},{b},{int(same)}" for fold, a, b, same in rows]
    return Pairs(
        _csv(tmp_path / "pairs.csv", "fold,a,b,same", *lines),
        _zip(tmp_path / "images.zip", {n: _png(row) for n, row in embeddings.items()}),
        embeddings,
        rows,
    )


@both_ways
def test_faces_against_brute_force(pairs: Pairs, calibration: Calibration) -> None:
    model = FakeModel(calibration)
    report = evaluate_faces(model, pairs.pairs, pairs.images, aligned=True)
    assert [part.name for part in report.parts] == ["all folds", "fold 4", "fold 5"]
    assert (report.samples, report.failed, report.left_out) == (60, 0, 0)
    scores = np.array(
        [
            calibration.similarity(
                "face", _decoded(pairs.embeddings[a])[None], _decoded(pairs.embeddings[b])
            )
            for _, a, b, _ in pairs.rows
        ]
    )
    same = np.array([row[3] for row in pairs.rows])
    total = report.parts[0]
    assert (total.genuine, total.impostors, total.people) == (40, 80, 20)
    assert total.eer.value == pytest.approx(equal_error_rate(scores, same))
    accepted = scores >= CURVE.threshold(0.01)
    decision = total.decisions[0]
    assert decision.observed_fmr is not None
    assert decision.observed_fnmr is not None
    assert decision.observed_fmr.errors == int((accepted & ~same).sum())
    assert decision.observed_fnmr.errors == int((~accepted & same).sum())
    assert total.accuracy is not None
    parts = [part.accuracy for part in report.parts[1:]]
    assert total.accuracy.errors == sum(rate.errors for rate in parts if rate is not None)


def test_faces_in_batches(pairs: Pairs) -> None:
    model = FakeModel()
    steps: list[tuple[int, int]] = []
    evaluate_faces(
        model, pairs.pairs, pairs.images, True, progress=lambda *step: steps.append(step)
    )
    assert sum(model.batches) == 60
    assert max(model.batches) <= 64
    assert steps == [(i, 60) for i in range(1, 61)]


def test_folder_equals_zip(pairs: Pairs, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with zipfile.ZipFile(pairs.images) as archive:
        archive.extractall(folder)
    of_zip = evaluate_faces(FakeModel(), pairs.pairs, pairs.images, True)
    assert evaluate_faces(FakeModel(), pairs.pairs, folder, True) == of_zip
    # The fake front end hands back the image itself.
    assert evaluate_faces(FakeModel(), pairs.pairs, folder, False) == of_zip


def test_one_fold(pairs: Pairs) -> None:
    report = evaluate_faces(FakeModel(), pairs.pairs, pairs.images, True, fold=5)
    (part,) = report.parts
    assert part.name == "fold 5"
    assert part.genuine == 20
    assert part.accuracy is not None
    assert part.accuracy.trials <= 60
    assert report.left_out == 0
    with pytest.raises(DataError, match="no fold 7"):
        evaluate_faces(FakeModel(), pairs.pairs, pairs.images, True, fold=7)


def test_pairs_without_images_are_left_out_and_counted(pairs: Pairs, tmp_path: Path) -> None:
    kept = {n: _png(row) for n, row in pairs.embeddings.items() if n >= "n10"}
    report = evaluate_faces(FakeModel(), pairs.pairs, _zip(tmp_path / "part.zip", kept), True)
    assert report.left_out == 60
    assert [part.name for part in report.parts] == ["fold 5"]
    assert "60 comparisons left out" in report.lines()[0]
    other = _zip(tmp_path / "other.zip", {"x.png": b"x"})
    with pytest.raises(DataError, match="none of the 120 pairs"):
        evaluate_faces(FakeModel(), pairs.pairs, other, True)


def test_photo_without_a_face_is_an_error_in_genuine_pairs(pairs: Pairs, tmp_path: Path) -> None:
    images = {n: _png(row) for n, row in pairs.embeddings.items()}
    images["n03/0.png"] = _black()
    path = _zip(tmp_path / "black.zip", images)
    whole = evaluate_faces(FakeModel(CALIBRATION), pairs.pairs, pairs.images, False)
    report = evaluate_faces(FakeModel(CALIBRATION), pairs.pairs, path, False)
    assert report.failed == 1
    assert report.parts[0].genuine == whole.parts[0].genuine
    before, after = (r.parts[0].decisions[0].observed_fnmr for r in (whole, report))
    assert before is not None
    assert after is not None
    assert before.errors <= after.errors <= before.errors + 2
    assert after.errors >= 2


def test_images_that_cannot_be_used(pairs: Pairs, tmp_path: Path) -> None:
    images = {n: _png(row) for n, row in pairs.embeddings.items()}
    images["n03/0.png"] = b"junk"
    path = _zip(tmp_path / "junk.zip", images)
    for aligned in (True, False):
        with pytest.raises(DataError, match=r"n03/0\.png"):
            evaluate_faces(FakeModel(), pairs.pairs, path, aligned)
    images["n03/0.png"] = _png(np.ones(DIMENSION), size=64)
    path = _zip(tmp_path / "small.zip", images)
    with pytest.raises(DataError, match="64 x 64"):
        evaluate_faces(FakeModel(), pairs.pairs, path, aligned=True)


def test_colour_crops_become_grey(pairs: Pairs, tmp_path: Path) -> None:
    def colour(row: NDArray[Any]) -> bytes:
        grey = cv2.imdecode(np.frombuffer(_png(row), np.uint8), cv2.IMREAD_GRAYSCALE)
        assert grey is not None
        return bytes(cv2.imencode(".png", np.repeat(grey[..., None], 3, axis=2))[1])

    path = _zip(tmp_path / "colour.zip", {n: colour(r) for n, r in pairs.embeddings.items()})
    expected = evaluate_faces(FakeModel(), pairs.pairs, pairs.images, True)
    assert evaluate_faces(FakeModel(), pairs.pairs, path, True) == expected


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], "line 1: no column fold, a, b, same"),
        (["fold,a,b"], "line 1: no column same"),
        (["fold,a,b,same,same"], "occurs twice"),
        (["fold,a,b,same"], "no line"),
        (["fold,a,b,same", "4,x/1.png,x/2.png"], "line 2: 3 values"),
        (["fold,a,b,same", "4,x/1.png,x/2.png,1", "4,x,y,1,z"], "line 3: 5 values"),
        (["fold,a,b,same", "four,x/1.png,x/2.png,1"], "line 2: fold .* 'four'"),
        (["fold,a,b,same", "-4,x/1.png,x/2.png,1"], "line 2: fold"),
        (["fold,a,b,same", "4,x/1.png,x/2.png,yes"], "line 2: same must be 0 or 1"),
        (["fold,a,b,same", "4,,x/2.png,1"], "line 2: a is empty"),
        (["fold,a,b,same", "4,../x.png,x/2.png,1"], "line 2: a: '../x.png'"),
        (["fold,a,b,same", "4,/etc/x.png,x/2.png,1"], "line 2: a"),
        (["fold,a,b,same", "4,C:\\x.png,x/2.png,1"], "line 2: a"),
        (["fold,a,b,same", "4,x/1.png,x/1.png,1"], "line 2: x/1.png is paired with itself"),
        (["fold,a,b,same", '4,"x/1.png,x/2.png,1'], "not CSV"),
        (["fold,a,b,same", "4,x\0/1.png,x/2.png,1"], "line 2|not CSV"),
    ],
)
def test_malformed_pairs(lines: list[str], message: str, pairs: Pairs, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_faces(FakeModel(), _csv(tmp_path / "bad.csv", *lines), pairs.images, True)


def test_files_that_cannot_be_read(pairs: Pairs, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        evaluate_faces(FakeModel(), tmp_path / "none.csv", pairs.images, True)
    with pytest.raises(DataError, match="cannot be read"):
        evaluate_faces(FakeModel(), tmp_path, pairs.images, True)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"fold,a,b,same\n\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        evaluate_faces(FakeModel(), binary, pairs.images, True)
    with pytest.raises(DataError, match="no such"):
        evaluate_faces(FakeModel(), pairs.pairs, tmp_path / "none.zip", True)


def test_byte_order_mark_spaces_and_blank_lines_are_fine(pairs: Pairs) -> None:
    lines = pairs.pairs.read_text().replace("fold,a", "\ufefffold, a").replace("\n", "\r\n\r\n")
    expected = evaluate_faces(FakeModel(), pairs.pairs, pairs.images, True)
    pairs.pairs.write_text(lines, encoding="utf-8", newline="")
    assert evaluate_faces(FakeModel(), pairs.pairs, pairs.images, True) == expected


@pytest.mark.parametrize(
    "name", ["../up.png", "a/../../up.png", "/root.png", "a\\..\\b.png", "C:x"]
)
def test_zip_with_names_that_lead_out(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="plain relative path"):
        Members(_zip(tmp_path / "evil.zip", {"a/b.png": b"x", name: b"x"}))


def test_archives_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no files"):
        Members(_zip(tmp_path / "empty.zip", {}))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="holds no files"):
        Members(empty)
    junk = tmp_path / "junk.zip"
    junk.write_bytes(b"not a zip")
    with pytest.raises(DataError, match="cannot be read"):
        Members(junk)
    good = _zip(tmp_path / "good.zip", {"a/b.png": b"0123456789" * 50})
    damaged = good.read_bytes().replace(b"0123456789", b"0123456780", 1)
    (tmp_path / "damaged.zip").write_bytes(damaged)
    with (
        Members(tmp_path / "damaged.zip") as members,
        pytest.raises(DataError, match=r"a/b\.png cannot be read"),
    ):
        members.read("a/b.png")
    (tmp_path / "short.zip").write_bytes(good.read_bytes()[:-30])
    with pytest.raises(DataError):
        Members(tmp_path / "short.zip")
    with Members(good) as members, pytest.raises(DataError, match="no file"):
        members.read("a/c.png")


def test_large_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeid.runtime.members.MAX_MEMBER_BYTES", 10)
    with Members(_zip(tmp_path / "a.zip", {"a/b": bytes(11), "a/c": bytes(10)})) as members:
        assert members.read("a/c") == bytes(10)
        with pytest.raises(DataError, match="11 bytes"):
            members.read("a/b")


@dataclasses.dataclass(frozen=True)
class Voices:
    enroll: Path
    trials: Path
    audio: Path
    embeddings: dict[str, NDArray[Any]]


@pytest.fixture
def voices(tmp_path: Path) -> Voices:
    """Two sets of eight speakers: three utterances enrol, two test."""
    embeddings: dict[str, NDArray[Any]] = {}
    enrol, trials = ["speaker,file"], ["set,claimed,file,target"]
    for number, name in enumerate(("one", "two")):
        people = _people(8, 5, 0.5 + number, number)
        embeddings |= {
            f"{name}/{name}{p}/{i}.json": row
            for p, rows in people.items()
            for i, row in enumerate(rows)
        }
        for p in people:
            enrol += [f"{name}{p},{name}/{name}{p}/{i}.json" for i in range(3)]
            for q in people:
                for i in (3, 4):
                    trials.append(f"{name},{name}{p},{name}/{name}{q}/{i}.json,{int(p == q)}")
    content = {n: json.dumps(row.tolist()).encode() for n, row in embeddings.items()}
    return Voices(
        _csv(tmp_path / "enroll.csv", *enrol),
        _csv(tmp_path / "trials.csv", *trials),
        _zip(tmp_path / "audio.zip", content),
        embeddings,
    )


@both_ways
def test_voices_against_brute_force(voices: Voices, calibration: Calibration) -> None:
    report = evaluate_voices(FakeModel(calibration), voices.enroll, voices.trials, voices.audio)
    assert [part.name for part in report.parts] == ["one", "two", "all sets"]
    one, two, together = report.parts
    assert together.genuine == one.genuine + two.genuine == 32
    assert together.impostors == one.impostors + two.impostors
    assert together.people == 16
    assert report.samples == 80
    scores, labels = [], []
    for line in voices.trials.read_text().splitlines()[1:]:
        name, claimed, file, target = line.split(",")
        if name == "two":
            templates = [voices.embeddings[f"two/{claimed}/{i}.json"] for i in range(3)]
            probe = voices.embeddings[file]
            scores.append(calibration.similarity("voice", np.stack(templates), probe))
            labels.append(target == "1")
    part = report.parts[1]
    assert (part.genuine, part.impostors, part.people) == (16, 112, 8)
    assert part.eer.value == pytest.approx(equal_error_rate(scores, labels))
    assert part.hter is not None
    plain = evaluate_voices(FakeModel(), voices.enroll, voices.trials, voices.audio)
    assert plain.parts[1].decisions == ()


def test_silent_recordings_score_lowest(voices: Voices, tmp_path: Path) -> None:
    content = {n: json.dumps(row.tolist()).encode() for n, row in voices.embeddings.items()}
    content["one/onen00/3.json"] = b"[0.0]"
    content["one/onen01/0.json"] = b"[0.0]"  # one of three templates: the others stay
    report = evaluate_voices(
        FakeModel(), voices.enroll, voices.trials, _zip(tmp_path / "silent.zip", content)
    )
    assert report.failed == 2
    assert report.parts[0].genuine == 16
    content |= {f"one/onen01/{i}.json": b"[0.0]" for i in range(3)}
    with pytest.raises(DataError, match="none of the 3 files that enrol onen01"):
        evaluate_voices(
            FakeModel(), voices.enroll, voices.trials, _zip(tmp_path / "all.zip", content)
        )
    content["one/onen01/0.json"] = b"junk"
    with pytest.raises(DataError, match=r"onen01/0\.json"):
        evaluate_voices(
            FakeModel(), voices.enroll, voices.trials, _zip(tmp_path / "junk.zip", content)
        )


def test_voices_refuse(voices: Voices, tmp_path: Path) -> None:
    def run(extra_trial: str = "", extra_enrol: str = "", audio: Path = voices.audio) -> None:
        trials = _csv(tmp_path / "t.csv", voices.trials.read_text() + extra_trial)
        enroll = _csv(tmp_path / "e.csv", voices.enroll.read_text() + extra_enrol)
        evaluate_voices(FakeModel(), enroll, trials, audio)

    line = 2 * 8 * 8 * 2 + 2
    with pytest.raises(DataError, match=f"line {line}: bob is not enrolled"):
        run("one,bob,one/onen00/3.json,1")
    with pytest.raises(DataError, match=f"line {line}: .* enrols a speaker"):
        run("one,onen01,one/onen00/0.json,0")
    with pytest.raises(DataError, match=f"line {line}: .* is of onen00 by an earlier line"):
        run("one,onen01,one/onen00/3.json,1")
    with pytest.raises(DataError, match=rf"lacks 1 of 81 recordings: one/x\.json .*line {line}"):
        run("one,onen01,one/x.json,0")
    with pytest.raises(DataError, match=r"line 50: .* enrols onen00 already"):
        run(extra_enrol="onen01,one/onen00/0.json")
    with pytest.raises(DataError, match="0 genuine"):
        run("three,onen01,one/onen00/3.json,0")


@dataclasses.dataclass(frozen=True)
class Chimeras:
    people: Path
    faces: Path
    audio: Path
    photos: dict[str, NDArray[Any]]
    sounds: dict[str, NDArray[Any]]

    def evaluate(self, model: EvaluatedModel, **options: Any) -> Any:
        return evaluate_people(model, self.people, self.faces, self.audio, **options)


@pytest.fixture
def chimeras(tmp_path: Path) -> Chimeras:
    """Six people; five photos and seven utterances each, three and three enrol."""
    photos, sounds = _people(6, 5, 0.9, 5), _people(6, 7, 1.2, 6)
    lines = [f"p{i},n{i:02d},s{5 - i}" for i in range(6)]
    sounds = {f"s{i}": rows for i, rows in enumerate(sounds.values())}
    return Chimeras(
        _csv(tmp_path / "people.csv", "person,face,speaker", *lines),
        _zip(
            tmp_path / "faces.zip",
            {f"{n}/{i}.png": _png(row) for n, rows in photos.items() for i, row in enumerate(rows)},
        ),
        _zip(
            tmp_path / "speech.zip",
            {
                f"set/{n}/{i}.json": json.dumps(row.tolist()).encode()
                for n, rows in sounds.items()
                for i, row in enumerate(rows)
            },
        ),
        photos,
        sounds,
    )


@both_ways
@pytest.mark.parametrize("crossed", [False, True])
def test_people_against_brute_force(
    chimeras: Chimeras, crossed: bool, calibration: Calibration
) -> None:
    report = chimeras.evaluate(FakeModel(calibration), crossed=crossed)
    face, voice, fused = report.parts
    assert [part.name for part in report.parts] == ["face", "voice", "fused"]
    combos = [(i, j) for i in (3, 4) for j in (3, 4, 5, 6) if crossed or i == j]
    assert len(combos) == (8 if crossed else 2)
    scores, labels = [], []
    for a in range(6):
        for b in range(6):
            for i, j in combos:
                photos, sounds = chimeras.photos[f"n{a:02d}"], chimeras.sounds[f"s{5 - a}"]
                probe = chimeras.photos[f"n{b:02d}"][i], chimeras.sounds[f"s{5 - b}"][j]
                scores.append(
                    calibration.fuse(
                        calibration.similarity("face", _decoded(photos[:3]), _decoded(probe[0])),
                        calibration.similarity("voice", sounds[:3], probe[1]),
                    )
                )
                labels.append(a == b)
    assert (fused.genuine, fused.impostors) == (6 * len(combos), 30 * len(combos))
    assert fused.eer.value == pytest.approx(equal_error_rate(scores, labels))
    accepted = np.array(scores) >= CURVE.threshold(0.01)
    assert fused.decisions[0].observed_fmr.errors == int((accepted & ~np.array(labels)).sum())
    assert face.impostors == 30 * 2
    assert voice.impostors == 30 * (4 if crossed else 2)
    assert (report.samples, report.failed) == (6 * 12, 0)


def test_people_are_fused_by_the_quality_of_their_probes(chimeras: Chimeras) -> None:
    sharpness = QualityTerm(0.001, 0.01, 0.1, -0.5, 0.05)
    speech = QualityTerm(0.5, 2.0, 4.0, 0.3, 0.1)
    fusion = Fusion(0.0, 0.5, 0.5, sharpness, speech)
    calibration = dataclasses.replace(CALIBRATION, fusion=fusion)
    report = chimeras.evaluate(FakeModel(calibration))
    scores, labels = [], []
    for a in range(6):
        for b in range(6):
            for i in (3, 4):
                photos, sounds = chimeras.photos[f"n{a:02d}"], chimeras.sounds[f"s{5 - a}"]
                probe = chimeras.photos[f"n{b:02d}"][i], chimeras.sounds[f"s{5 - b}"][i]
                seconds = 1.0 + abs(float(np.float32(probe[1][0])))
                scores.append(
                    calibration.fuse(
                        calibration.similarity("face", _decoded(photos[:3]), _decoded(probe[0])),
                        calibration.similarity("voice", sounds[:3], probe[1]),
                        {"face": {"sharpness": 7 / 510}, "voice": {"speech": seconds}},
                    )
                )
                labels.append(a == b)
    fused = report.parts[2]
    assert fused.eer.value == pytest.approx(equal_error_rate(scores, labels))
    for decision in fused.decisions:
        assert decision.threshold is not None
        accepted = np.array(scores) >= decision.threshold
        assert decision.observed_fmr is not None
        assert decision.observed_fmr.errors == int((accepted & ~np.array(labels)).sum())
    assert fused != chimeras.evaluate(FakeModel(CALIBRATION)).parts[2]


def test_people_with_other_enrolment(chimeras: Chimeras) -> None:
    report = chimeras.evaluate(FakeModel(CALIBRATION), enroll_photos=1, enroll_utterances=5)
    assert report.parts[2].genuine == 6 * 2  # four photos, two utterances
    with pytest.raises(DataError, match=r"line 2: .*faces.zip has 5 files in a folder n00"):
        chimeras.evaluate(FakeModel(), enroll_photos=5)
    with pytest.raises(DataError, match="cannot enrol"):
        chimeras.evaluate(FakeModel(), enroll_photos=0)


def test_people_without_calibration(chimeras: Chimeras) -> None:
    report = chimeras.evaluate(FakeModel())
    assert [part.name for part in report.parts] == ["face", "voice"]
    assert any("not calibrated" in note for note in report.notes)
    only_face = chimeras.evaluate(FakeModel(Calibration(face=CURVE)))
    assert len(only_face.parts) == 2
    assert only_face.parts[1].decisions[0].threshold is None
    assert any("no threshold stored" in line for line in only_face.parts[1].lines())


def test_people_refuse(chimeras: Chimeras, tmp_path: Path) -> None:
    def run(*lines: str) -> Callable[[], Any]:
        path = _csv(tmp_path / "bad.csv", "person,face,speaker", *lines)
        changed = dataclasses.replace(chimeras, people=path)
        return lambda: changed.evaluate(FakeModel())

    with pytest.raises(DataError, match="line 3: person p0 occurs a second time"):
        run("p0,n00,s0", "p0,n01,s1")()
    with pytest.raises(DataError, match="line 3: speaker s0 occurs a second time"):
        run("p0,n00,s0", "p1,n01,s0")()
    with pytest.raises(DataError, match=r"line 2: .* has 0 files in a folder n99"):
        run("p0,n99,s0", "p1,n01,s1")()


def test_folders_of_one_name(tmp_path: Path) -> None:
    path = _zip(tmp_path / "twice.zip", {"a/n00/1": b"x", "b/n00/1": b"x"})
    with Members(path) as members, pytest.raises(DataError, match="one name"):
        members.folders()


def test_report_as_json_and_as_text(chimeras: Chimeras) -> None:
    report = chimeras.evaluate(FakeModel(CALIBRATION))
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["kind"] == "people"
    assert data["parts"][2]["points"][2]["supported"] is False
    rate = data["parts"][0]["eer"]
    assert set(rate) == {"value", "low", "high", "errors", "trials"}
    text = "\n".join(report.lines())
    assert "fused: 12 genuine and 60 impostor comparisons of 6 people" in text
    assert "not supported (60 impostors, needs 30,000)" in text
    assert "Note: Chimeric people" in text
    columns = {line.index(" % ") for line in report.lines() if " % " in line}
    assert len(columns) == 1


def test_det_keeps_the_corners_of_the_roc() -> None:
    det = Det.of(roc([5, 4, 3, 2, 1, 0], [True, True, False, False, True, False]))
    assert det.fmr == (0, 0, 2 / 3, 2 / 3, 1)
    assert det.fnmr == pytest.approx((1, 1 / 3, 1 / 3, 0, 0))


def test_det_of_many_trials_is_thinned() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(20_000) < 0.5
    curve = roc(rng.standard_normal(20_000) + labels, labels)
    det = Det.of(curve)
    assert len(det.fmr) <= 801
    assert (det.fmr[0], det.fnmr[0], det.fmr[-1], det.fnmr[-1]) == (0, 1, 1, 0)
    assert isinstance(curve, Roc)
    np.testing.assert_allclose(np.interp(curve.fmr, det.fmr, det.fnmr), curve.fnmr, atol=0.02)


class PixelModel(FakeModel):
    """The crop itself, made small, as an embedding: far from good, but no chance."""

    def embed_aligned(self, crops: NDArray[np.uint8]) -> Row:
        small = [cv2.resize(crop[20:100, 20:92], (12, 12)).ravel() for crop in crops]
        rows = np.asarray(small, np.float32)
        rows -= rows.mean(axis=1, keepdims=True)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def test_lfw_development_pairs() -> None:
    path = DATA / "faces" / "lfw_pairs.csv"
    if not path.exists():
        pytest.skip(f"no data at {path}")
    report = evaluate_faces(PixelModel(), path, DATA / "faces" / "lfw_aligned.zip", True)
    total = report.parts[0]
    assert (total.genuine, total.impostors, report.left_out) == (600, 600, 0)
    assert total.accuracy is not None
    assert 0.55 < total.accuracy.value < 0.85
    assert total.points[2].fnmr is None
