"""Scenes, targets, loss and training of the detector, on made-up pictures of faces."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
cv2 = pytest.importorskip("cv2")

from edgeid.converters.training import detector as training  # noqa: E402
from edgeid.converters.training.backdrops import backdrop  # noqa: E402
from edgeid.converters.training.detector import (  # noqa: E402
    DetectorNetwork,
    DetectorTraining,
    detector_loss,
    load_detector,
    targets,
    train_detector,
)
from edgeid.converters.training.detector_check import calibrate, measure  # noqa: E402
from edgeid.converters.training.detector_scenes import (  # noqa: E402
    Scene,
    make_scene,
    read_backgrounds,
)
from edgeid.converters.training.face_pictures import Faces, read_detector_faces  # noqa: E402
from edgeid.converters.training.faces import is_calibration  # noqa: E402
from edgeid.converters.training.pasting import paste, turned  # noqa: E402
from edgeid.runtime.alignment import TEMPLATE, apply  # noqa: E402
from edgeid.runtime.errors import DataError  # noqa: E402
from edgeid.runtime.network_detector import (  # noqa: E402
    OUTPUT_SHAPE,
    SIDE,
    decode,
    mirrored,
)

POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
RNG = np.random.default_rng(0)


def painted(side: int, points: NDArray[Any]) -> NDArray[np.uint8]:
    """A grey oval with dark eyes and mouth."""
    picture = np.full((side, side), 90, np.uint8)
    middle = tuple(int(v) for v in points.mean(0))
    size = int(np.linalg.norm(points[1] - points[0]))
    cv2.ellipse(picture, middle, (size, int(1.4 * size)), 0, 0, 360, 190, -1)
    for x, y in points[:2].astype(int).tolist():
        cv2.circle(picture, (x, y), max(2, size // 6), 30, -1)
    left, right = (tuple(int(v) for v in p) for p in points[3:])
    cv2.line(picture, left, right, 40, max(2, size // 8))
    return picture


LOOSE = np.array([(39.5, 40), (56.5, 40), (48, 49), (41, 58), (55, 58)])
FACES = Faces(
    np.stack([painted(96, LOOSE)] * 2),
    np.array([(47.5, 47.5, 36.0, 48.0)] * 2),
    np.stack([LOOSE] * 2),
    np.stack([painted(112, TEMPLATE)] * 2),
)
EMPTY = np.zeros((0, 15))


def face(x: float, y: float, w: float, h: float, counts: float = 1) -> NDArray[np.float64]:
    return np.array([x, y, w, h, *np.tile([x, y], 5), counts], np.float64)


def scene(*faces: NDArray[np.float64]) -> Scene:
    return Scene(np.zeros((SIDE, SIDE), np.uint8), np.array(faces).reshape(-1, 15))


def test_equal_seeds_give_equal_scenes() -> None:
    for seed in range(20):
        a, b = (make_scene(FACES, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(a.picture, b.picture)
        assert np.array_equal(a.faces, b.faces)


def test_scenes_are_what_they_say() -> None:
    scenes = [make_scene(FACES, np.random.default_rng([5, i])) for i in range(90)]
    counts = np.array([len(s.faces) for s in scenes])
    assert 0.15 < (counts == 0).mean() < 0.5  # a third without a face
    assert counts.max() in (3, 4)
    for s in scenes:
        height, width = s.picture.shape
        assert max(height, width) == SIDE
        assert s.picture.dtype == np.uint8
        x, y, w, h = s.faces[:, :4].T
        assert ((x > 0) & (x < width) & (y > 0) & (y < height)).all()
        assert ((np.sqrt(w * h) > 12.9) & (np.sqrt(w * h) < SIDE)).all()
        assert np.isin(s.faces[:, 14], (0, 1)).all()
    assert Faces.aligned(FACES.close).close is FACES.close
    make_scene(Faces.aligned(FACES.close), RNG)
    make_scene(replace(FACES, close=FACES.close[:0]), RNG)
    with pytest.raises(DataError, match="no face"):
        Faces.aligned(FACES.close[:0])


def test_faces_of_ones_own_without_aligned_crops(tmp_path: Path) -> None:
    columns = ",".join(f"{p}_{a}" for p in POINTS for a in "xy")
    names = [f"set/person{i}" for i in range(40)]
    held = sum(is_calibration(name) for name in names)
    assert 0 < held < 40
    points = ",".join(str(v) for v in LOOSE.ravel())
    lines = [f"{i}.png,{name}/a.jpg,36,48,{points}" for i, name in enumerate(names)]
    text = "\n".join([f"file,source,box_w,box_h,{columns}", *lines])
    (tmp_path / "landmarks.csv").write_text(text)
    content = cv2.imencode(".png", FACES.loose[0])[1].tobytes()
    with zipfile.ZipFile(tmp_path / "landmarks.zip", "w") as archive:
        for i in range(40):
            archive.writestr(f"{i}.png", content)
    kept, others = read_detector_faces(tmp_path), read_detector_faces(tmp_path, held_out=True)
    assert (len(kept.loose), len(others.loose)) == (40 - held, held)
    assert len(kept.close) == 0
    assert kept.loose_boxes[0].tolist() == [47.5, 47.5, 36, 48]
    assert kept.loose_points[0] == pytest.approx(LOOSE, abs=0.5)


@pytest.mark.parametrize("scale", [0.2, 0.6, 1.0, 2.3])
def test_what_is_pasted_lies_where_the_label_says(scale: float) -> None:
    picture = np.zeros((96, 96), np.uint8)
    picture[34:47, 54:67] = 255  # its middle is at (60, 40)
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    matrix = turned(np.array([47.5, 47.5]), np.array([120.0, 100.0]), scale, 25.0)
    paste(canvas, picture, matrix, np.full((96, 96), 255, np.uint8))
    y, x = np.indices(canvas.shape)
    found = np.array([(x * canvas.astype(float)).sum(), (y * canvas.astype(float)).sum()])
    assert found / canvas.sum() == pytest.approx(apply(matrix, np.array([60, 40])), abs=0.35)


def test_pasting_outside_changes_nothing() -> None:
    canvas = np.zeros((100, 120), np.uint8)
    matrix = turned(np.array([48.0, 48.0]), np.array([-300.0, 900.0]), 1.0, 0.0)
    paste(canvas, FACES.loose[0], matrix, np.full((96, 96), 255, np.uint8))
    assert not canvas.any()


def test_photos_of_ones_own_as_backgrounds(tmp_path: Path) -> None:
    photo = np.full((90, 400), 77, np.uint8)
    cv2.imwrite(str(tmp_path / "wall.png"), photo)
    (background,) = read_backgrounds(tmp_path)
    assert min(background.shape) == SIDE
    scraps = [FACES.loose[0][:20, :20]] * 4
    seen = [backdrop(scraps, np.random.default_rng(i), [background]) for i in range(20)]
    assert any((picture == 77).all() for picture in seen)
    assert all(picture.shape == (SIDE, SIDE) for picture in seen)


def test_targets_by_hand() -> None:
    # A face of size 64: its core reaches 64 / 7 = 9.1 pixels, less than three quarters of a cell:
    # 12. Its middle is that of cell (2, 3), at (3 * 16 + 7.5, 2 * 16 + 7.5); neighbours are 16 off.
    goal, weight, held = targets([scene(face(55.5, 39.5, 64, 64)), scene()])
    assert goal.shape == (2, *OUTPUT_SHAPE)
    assert held.sum() == held[0, 2, 3] == 1
    assert goal[0, 1:, 2, 3].tolist() == [0.0] * 14  # at the cell's centre, of the unit's size
    # The four neighbours at 16 and the four at 22.6 are nearer than twice the core: free.
    assert weight[0, 1:4, 2:5].sum() == 1
    assert weight[0].sum() == 256 - 8
    assert weight[1].sum() == 256


def test_targets_of_a_large_face() -> None:
    goal, _, held = targets([scene(face(127.5, 127.5, 180, 245))])
    # Size 210, core 30: of the cells at 8, 24, 40 ... from the middle those at (8, 8) and (8, 24).
    assert held.sum() == 12
    row, column = 7, 6  # its centre is at (103.5, 119.5): 24 left, 8 above
    assert goal[0, 1:3, row, column].tolist() == pytest.approx([24 / 210, 8 / 210], abs=1e-3)
    assert goal[0, 3:5, row, column].tolist() == pytest.approx([np.log(180 / 64), np.log(245 / 64)])


def test_a_face_that_is_cut_off_may_be_found_or_not() -> None:
    _, weight, held = targets([scene(face(127.5, 127.5, 60, 80, counts=0))])
    assert held.sum() == 0
    assert weight[0, 7:9, 7:9].sum() == 0
    assert weight[0, 0].all()


def test_the_smaller_of_two_faces_wins_its_cells() -> None:
    small, large = face(55.5, 55.5, 16, 16), face(60, 60, 200, 250)
    for faces in ((small, large), (large, small)):
        goal, weight, held = targets([scene(*faces)])
        assert goal[0, 3, 3, 3] == pytest.approx(np.log(16 / 64))
        assert (weight[held > 0] == 1).all()


def test_loss_by_hand() -> None:
    goal, weight, held = targets([scene(face(55.5, 39.5, 64, 64))])
    found = torch.zeros(goal.shape)
    # Each of 248 cells has log 2 * 0.25; box and points are right already.
    expected = 248 * np.log(2) * 0.25
    assert float(detector_loss(found, goal, weight, held)) == pytest.approx(expected, rel=1e-5)
    found[0, 1, 2, 3] = 1.0  # one of fourteen values is 1 off: 0.975 beyond the round part
    more = float(detector_loss(found, goal, weight, held))
    assert more == pytest.approx(expected + 4 * 0.975 / 14, rel=1e-5)
    sure = torch.full(goal.shape, 0.0)
    sure[:, 0] = torch.where(held > 0, 40.0, -40.0)
    assert float(detector_loss(sure, goal, weight, held)) == pytest.approx(0, abs=1e-6)
    none = targets([scene()])
    assert float(detector_loss(sure, *none)) > 0  # no face, but a sure cell


class Fixed(torch.nn.Module):
    """Answers with given maps, one call after the other."""

    def __init__(self, answers: list[NDArray[np.float32]]) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, _: Any) -> Any:
        maps = self.answers.pop(0)[None]
        return torch.from_numpy(np.concatenate([maps, mirrored(maps)]))


def answer(odds: float, where: tuple[int, int] = (2, 3)) -> NDArray[np.float32]:
    maps = np.zeros(OUTPUT_SHAPE, np.float32)
    maps[0] = -20
    maps[0][where] = odds
    return maps


def test_measure_counts_what_is_found() -> None:
    here, elsewhere = face(55.5, 39.5, 64, 64), face(200, 200, 40, 40)
    ignored = face(55.5, 39.5, 64, 64, counts=0)
    scenes = [scene(here, elsewhere), scene(here), scene(), scene(ignored)]
    answers = [answer(2), answer(-1), answer(1), answer(3)]
    found = measure(Fixed(answers), scenes)
    assert (found.faces, found.found, found.false, found.scenes) == (3, 1, 1, 4)
    assert found.error == pytest.approx(0, abs=1e-4)
    assert "1 of 3 faces" in found.line()


def test_calibration_finds_scale_and_shift() -> None:
    # Log-odds of 0 are right in 3 of 4 scenes, those of 1 in 9 of 10: log 3, and log 9 = 2 log 3.
    here = scene(face(55.5, 39.5, 64, 64))
    plan = [(0.0, 30, 10), (1.0, 90, 10)]
    scenes, answers = [], []
    for odds, right, wrong in plan:
        scenes += [here] * right + [scene()] * wrong
        answers += [answer(odds)] * (right + wrong)
    maps = torch.nn.Conv2d(2, 15, 1)
    before = maps.weight.detach().clone(), float(maps.bias[0].detach())
    factor, shift = calibrate(Fixed(answers), maps, scenes)
    assert (factor, shift) == pytest.approx((np.log(3), np.log(3)), abs=1e-4)
    assert torch.allclose(maps.weight[0], before[0][0] * factor)
    assert torch.equal(maps.weight[1:], before[0][1:])
    assert float(maps.bias[0].detach()) == pytest.approx(factor * before[1] + shift, rel=1e-5)


def test_nothing_to_calibrate_with() -> None:
    maps = torch.nn.Conv2d(2, 15, 1)
    with pytest.raises(DataError, match="0 of 1 detections are right"):
        calibrate(Fixed([answer(1)]), maps, [scene()])


def test_steps_on_some_scenes_learn_them() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = DetectorNetwork().to(memory_format=torch.channels_last)
    optimizer = training._optimizer(network, DetectorTraining())
    scenes = [make_scene(FACES, np.random.default_rng([3, i])) for i in range(4)]
    losses = [training._step(network, optimizer, scenes) for _ in range(9)]
    assert losses[-1] < 0.6 * losses[0]


def test_a_training_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    options = DetectorTraining(steps=6, batch=2, checked=2)
    monkeypatch.setattr(training, "SAVED", 3)
    # What calibration finds after so few steps is chance: only that it is called matters here.
    calibrated: list[object] = []
    monkeypatch.setattr(training, "calibrate", lambda *given: calibrated.append(given))
    plain, steps = training._step, 0

    def step(*given: Any) -> float:
        nonlocal steps
        steps += 1
        if steps == 6 + 5:
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(training, "_step", step)
    network, recall = train_detector(FACES, FACES, options, tmp_path / "whole.pt")
    assert (steps, recall.scenes, len(calibrated)) == (6, 2, 1)
    x = torch.zeros(1, 1, SIDE, SIDE)
    assert torch.equal(load_detector(tmp_path / "whole.pt")(x), network(x))
    with pytest.raises(KeyboardInterrupt):
        train_detector(FACES, FACES, options, tmp_path / "parts.pt")
    again, _ = train_detector(FACES, FACES, options, tmp_path / "parts.pt")
    assert steps == 6 + 5 + 3
    assert torch.allclose(again(x), network(x), atol=1e-4)
    with pytest.raises(DataError, match="other options"):
        train_detector(FACES, FACES, replace(options, seed=2), tmp_path / "parts.pt")


def test_files_that_hold_no_detector(tmp_path: Path) -> None:
    path = tmp_path / "detector.pt"
    with pytest.raises(DataError, match=r"detector\.pt"):
        load_detector(path)
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(DataError, match="does not hold a detector"):
        load_detector(path)


def test_the_network_is_small_and_answers_for_every_cell() -> None:
    network = DetectorNetwork().eval()
    assert sum(p.numel() for p in network.parameters()) < 80_000
    with torch.no_grad():
        maps = network(torch.zeros(2, 1, SIDE, SIDE)).numpy()
    assert maps.shape == (2, *OUTPUT_SHAPE)
    assert decode(maps[0], 0) == []  # untrained, it finds nothing
