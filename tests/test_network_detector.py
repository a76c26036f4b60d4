"""The detector network's pictures and maps, by hand, and the default model's on photographs."""

from __future__ import annotations

import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeid.runtime import model as model_module
from edgeid.runtime.detection import Detection, HaarDetector, overlap, suppress
from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import GoldenVectorError, ImageError, ModelError, ModelFormatError
from edgeid.runtime.face_spec import FaceSpec
from edgeid.runtime.format import GOLDEN_VALUES, ModelFile, dump_model, golden_count, read_model
from edgeid.runtime.golden import make_golden
from edgeid.runtime.graph import Conv, Entry, Flatten, Gemm, Graph, MaxPool, merge_graphs
from edgeid.runtime.image import load_image
from edgeid.runtime.model import DETECTOR, Model, default_model
from edgeid.runtime.network_detector import (
    CELL,
    INPUT_SHAPE,
    OUTPUT_SHAPE,
    SIDE,
    UNIT,
    NetworkDetector,
    answers,
    cell_centres,
    check_detector,
    decode,
    detector_input,
    mirrored,
    shrunk,
)
from tests.data import DATA, needs_data

POINTS = np.array([(-0.2, -0.1), (0.2, -0.1), (0.0, 0.1), (-0.15, 0.3), (0.15, 0.3)])


def empty_map() -> NDArray[np.float32]:
    maps = np.zeros(OUTPUT_SHAPE, np.float32)
    maps[0] = -9
    return maps


def put(
    maps: NDArray[np.float32],
    centre: NDArray[Any],
    sides: tuple[float, float],
    odds: float = 3,
    reach: float = 0,
) -> None:
    """What the network would answer for a face, in the cell whose centre is nearest to its own,
    and in those within ``reach`` pixels."""
    size = np.sqrt(sides[0] * sides[1])
    apart = np.hypot(*(np.asarray(centre)[:, None, None] - cell_centres()))
    for row, column in np.argwhere(apart <= max(reach, apart.min())):
        away = (np.asarray(centre) - cell_centres()[:, row, column]) / size
        maps[:5, row, column] = [odds, *away, *np.log(np.divide(sides, UNIT))]
        maps[5:, row, column] = (POINTS + away).ravel()


def test_a_cell_by_hand() -> None:
    maps = empty_map()
    # Row 3, column 5: its centre is at (5 * 16 + 7.5, 3 * 16 + 7.5) = (87.5, 55.5). Width 64,
    # height 100, so the face's size is 80; its centre lies 0.1 sizes to the right.
    maps[:5, 3, 5] = 2.5, 0.1, 0.0, np.log(64 / 64), np.log(100 / 64)
    maps[5:7, 3, 5] = -0.25, 0.5
    (found,) = decode(maps, 0)
    assert found.score == pytest.approx(2.5)
    assert found.box == pytest.approx((95.5 - 31.5, 55.5 - 49.5, 64, 100), abs=1e-4)
    assert found.points is not None
    assert found.points.dtype == np.float32
    assert found.points[0] == pytest.approx((87.5 - 20, 55.5 + 40), abs=1e-3)
    assert found.points[1:].tolist() == [[87.5, 55.5]] * 4
    assert found.rough
    assert decode(maps, 2.6) == []


def test_the_best_cells_come_first_and_not_too_many() -> None:
    maps = np.zeros(OUTPUT_SHAPE, np.float32)
    maps[0] = np.arange(256).reshape(16, 16)
    found = decode(maps, 0)
    assert [d.score for d in found] == [float(255 - i) for i in range(64)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    maps = empty_map()
    maps[7, 0, 0] = value
    with pytest.raises(ModelError, match="not finite"):
        decode(maps, 0)


def test_sizes_are_bounded() -> None:
    maps = np.full(OUTPUT_SHAPE, 3e38, np.float32)
    box = decode(maps, 0)[0].box
    assert box[2:] == pytest.approx((1024, 1024))
    maps[3:5] = -3e38
    assert decode(maps, 0)[0].box[2:] == pytest.approx((4, 4))


@pytest.mark.parametrize(
    ("shape", "small"),
    [
        ((480, 640), (192, 256)),
        ((640, 480), (256, 192)),
        ((256, 256), (256, 256)),
        ((50, 100), (128, 256)),  # small images are enlarged
        ((1, 3000), (1, 256)),
    ],
)
def test_images_fill_the_picture(shape: tuple[int, int], small: tuple[int, int]) -> None:
    picture, scale = shrunk(np.zeros(shape, np.uint8))
    assert picture.shape == small
    assert scale == pytest.approx(256 / max(shape))


@pytest.mark.parametrize("shape", [(0, 5), (4, 4, 3)])
def test_what_is_no_grey_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="height, width"):
        shrunk(np.zeros(shape, np.uint8))


def test_pictures_are_standardised_and_filled_up_with_the_mean() -> None:
    picture = np.random.default_rng(0).integers(40, 90, (192, 256)).astype(np.uint8)
    x = detector_input([picture, np.full((3, 4), 200, np.uint8)])
    assert x.shape == (2, *INPUT_SHAPE)
    assert x.dtype == np.float32
    expected = (picture - picture.mean()) / picture.std()
    assert x[0, 0, :192] == pytest.approx(expected, abs=1e-5)
    assert not x[0, 0, 192:].any()
    assert not x[1].any()  # flat: its noise is not blown up


def test_mirrored_maps_by_hand() -> None:
    maps = empty_map()
    put(maps, np.array([40.0, 90.0]), (30, 40))
    (plain,), (seen,) = decode(maps, 0), decode(mirrored(maps[None])[0], 0)
    assert plain.points is not None
    assert seen.points is not None
    x, y, width, height = plain.box
    assert seen.box == pytest.approx((SIDE - x - width, y, width, height), abs=1e-4)
    turned = plain.points[[1, 0, 2, 4, 3]]  # the mirror's left eye is the right one
    assert seen.points[:, 0] == pytest.approx(SIDE - 1 - turned[:, 0], abs=1e-3)
    assert seen.points[:, 1] == pytest.approx(turned[:, 1], abs=1e-3)
    assert np.array_equal(mirrored(mirrored(maps[None])), maps[None])


def test_an_answer_is_the_mean_of_both_sides() -> None:
    maps = np.random.default_rng(2).normal(size=(2, *OUTPUT_SHAPE)).astype(np.float32)
    seen: list[NDArray[np.float32]] = []

    def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(x)
        return maps

    picture = np.random.default_rng(3).integers(0, 256, (256, 200)).astype(np.uint8)
    (found,) = answers(run, [picture])
    assert np.array_equal(seen[0][1], seen[0][0][:, :, ::-1])
    assert found == pytest.approx((maps[0] + mirrored(maps[1:])[0]) / 2)


class DotFinder:
    """Answers as a network would that takes the brightest pixel for a face's centre."""

    def __init__(self, side: float = 24.0) -> None:
        self.side = side
        self.pictures = 0

    def __call__(self, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        answers = []
        for picture in pictures[:, 0]:
            self.pictures += 1
            maps = empty_map()
            if picture.max() > 3:
                weights = np.clip(picture - 0.5 * picture.max(), 0, None)
                y, x = np.indices(picture.shape)
                centre = np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()
                put(maps, centre, (self.side, self.side), reach=12)
            answers.append(maps)
        return np.stack(answers)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(200, 400), st.integers(200, 400), st.floats(0.3, 0.7), st.floats(0.3, 0.7),
    st.integers(0, 1),
)  # fmt: skip
def test_places_come_back_in_image_pixels(
    height: int, width: int, right: float, down: float, effort: int
) -> None:
    """Through every view of both efforts: shrunk, with a margin, tilted, in parts."""
    image = np.full((height, width), 60, np.uint8)
    image[::2, ::2] = 66
    at = np.array([round(right * width), round(down * height)])
    radius = max(3, max(height, width) // 40)
    cv2.circle(image, (int(at[0]), int(at[1])), radius, 255, -1)
    detector = NetworkDetector(DotFinder())
    found = detector.detect(image, effort)
    assert found
    pixel = max(height, width) / SIDE  # of the picture, in the image
    for d in found:
        centre = np.array([d.box[0] + (d.box[2] - 1) / 2, d.box[1] + (d.box[3] - 1) / 2])
        assert np.abs(centre - at).max() < 1.6 * max(pixel, 1)
        assert d.points is not None
        assert np.hypot(*(d.points.mean(0) - at)) < 0.35 * d.box[2] + 2 * pixel
    assert 0.5 < found[0].box[2] / (24 * pixel) < 2


def test_effort_one_takes_eight_looks_in_one_call() -> None:
    finder = DotFinder()
    detector = NetworkDetector(finder)
    assert detector.efforts == 2
    detector.detect(np.zeros((300, 400, 3), np.uint8))
    assert finder.pictures == 4  # the image, with a margin, and their mirror images
    detector.detect(np.zeros((300, 400, 3), np.uint8), 1)
    assert finder.pictures == 4 + 16


def test_one_face_that_several_cells_hold_is_found_once() -> None:
    maps = empty_map()
    for x, y in ((100, 100), (108, 104), (100, 116)):
        put(maps, np.array([x, y], float), (80, 100))
    put(maps, np.array([220.0, 220.0]), (30, 40), odds=1)
    assert [round(d.box[2]) for d in suppress(decode(maps, 0))] == [80, 30]


@pytest.mark.parametrize(("margin", "found"), [(9.0, 1), (-1.0, 1), (-2.0, 0), (-9.0, 0)])
def test_two_looks_have_to_agree(margin: float, found: int) -> None:
    """Log-odds of 3 in the image, and so many with a margin: the mean is what counts."""

    def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
        maps = np.stack([empty_map(), empty_map()])
        put(maps[0], np.array([119.5, 119.5]), (80, 80), odds=3)
        put(maps[1], np.array([119.5, 119.5]), (58, 58), odds=margin)
        return np.concatenate([maps, mirrored(maps)]) if len(x) == 4 else np.zeros(0)

    seen = NetworkDetector(run).detect(np.zeros((512, 512), np.uint8))
    assert len(seen) == found
    if seen:
        assert seen[0].score == pytest.approx((3 + margin) / 2)
        assert seen[0].box[2] == pytest.approx(160)


def test_maps_of_another_shape_are_refused() -> None:
    detector = NetworkDetector(lambda x: np.zeros((len(x), 15, 8, 8), np.float32))
    with pytest.raises(ModelError, match=r"\(4, 15, 8, 8\).*\(4, 15, 16, 16\)"):
        detector.detect(np.zeros((20, 20), np.uint8))


def test_one_detector_in_several_threads() -> None:
    detector = NetworkDetector(DotFinder())
    images = [np.zeros((200, 300), np.uint8) for _ in range(3)]
    for i, image in enumerate(images):
        cv2.circle(image, (60 + 80 * i, 90), 8, 255, -1)
    expected = [[d.box for d in detector.detect(image, 1)] for image in images]
    answers: list[bool] = []

    def work(i: int) -> None:
        answers.append([d.box for d in detector.detect(images[i % 3], 1)] == expected[i % 3])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 6


def detector_graph(side: int = SIDE, outputs: int = 15) -> Graph:
    """One convolution with the shapes of a detector; it finds nothing."""
    weight = np.random.default_rng(1).normal(0, 1e-2, (outputs, 1, CELL, CELL)).astype(np.float32)
    bias = np.full(outputs, -9, np.float32)
    return Graph(
        (Entry(DETECTOR, "x", (1, side, side), "y"),),
        (Conv("maps", ("x",), "y", "w", "b", stride=(CELL, CELL)),),
        {"w": encode_float32(weight), "b": encode_float32(bias)},
    )


def model_file(detector: Graph | None) -> ModelFile:
    """A face network that means nothing, and a detector."""
    face = Graph(
        (Entry("face", "x", (1, 112, 112), "y"),),
        (
            MaxPool("pool", ("x",), "small", (28, 28), (28, 28)),
            Flatten("flat", ("small",), "vector"),
            Gemm("fc", ("vector",), "y", "w"),
        ),
        {"w": encode_float32(np.eye(4, 16, dtype=np.float32))},
    )
    graph = merge_graphs(face=face, **({} if detector is None else {"detector": detector}))
    engine = make_engine(graph, "reference")
    spec = FaceSpec(channels=1, crop=(0, 0, 112, 112))
    golden = [make_golden(engine, graph, entry.name, 1) for entry in graph.entries]
    return ModelFile(graph, face=spec.to_dict(), golden=golden)


def test_the_model_file_decides_which_detector(tmp_path: Path) -> None:
    own, none = model_file(detector_graph()), model_file(None)
    assert isinstance(Model(own, engine="reference").detector(), NetworkDetector)
    assert isinstance(Model(own, engine="reference", detector="haar").detector(), HaarDetector)
    assert isinstance(Model(none, engine="reference").detector(), HaarDetector)
    with pytest.raises(ModelError, match="no detector model"):
        Model(own, engine="reference", detector=tmp_path / "absent.onnx").detector()
    given = HaarDetector()
    assert Model(own, engine="reference", detector=given).detector() is given
    image = np.zeros((100, 80, 3), np.uint8)
    assert Model(own, engine="reference").detector().detect(image) == []


@pytest.mark.parametrize(
    "graph",
    [
        detector_graph(side=128),
        detector_graph(side=4096),
        detector_graph(outputs=16),
        replace(detector_graph(), layers=(*detector_graph().layers, Flatten("f", ("y",), "z")),
                entries=(Entry(DETECTOR, "x", (1, SIDE, SIDE), "z"),)),
    ],
)  # fmt: skip
def test_a_detector_of_other_shapes_is_refused_before_an_engine_is_built(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelFormatError, match="detector network takes"):
        check_detector(graph, DETECTOR)
    file = replace(model_file(None), graph=merge_graphs(detector=graph), golden=[])

    def no_engine(*_: object) -> None:
        raise AssertionError("nothing may be built")

    monkeypatch.setattr(model_module, "make_engine", no_engine)
    with pytest.raises(ModelFormatError, match="detector network takes"):
        Model(file)


def test_golden_vectors_of_maps_keep_some_values() -> None:
    file = model_file(detector_graph())
    golden = next(g for g in file.golden if g["entry"] == DETECTOR)
    assert (golden_count(2048), golden_count(2049)) == (2048, GOLDEN_VALUES)
    assert len(golden["embedding"]) == GOLDEN_VALUES
    assert read_model(dump_model(file)).golden == file.golden
    Model(file, engine="reference")
    golden["embedding"][17] += 30
    with pytest.raises(GoldenVectorError, match="detector"):
        Model(file, engine="reference")
    golden["embedding"].pop()
    with pytest.raises(ModelFormatError, match=r"127 values.*128 are kept"):
        dump_model(file)


def test_a_face_network_that_gives_maps_is_refused() -> None:
    graph = merge_graphs(face=detector_graph())
    spec = replace(FaceSpec(), channels=1)
    file = ModelFile(graph, face=spec.to_dict() | {"crop": [0, 0, 112, 112]})
    with pytest.raises(ModelError):
        Model(file, engine="reference")


def default_detector() -> NetworkDetector:
    found = Model.load(default_model()).detector()
    if not isinstance(found, NetworkDetector):
        pytest.skip("the default model has no detector network")
    return found


@pytest.mark.parametrize("shape", [(16, 16), (16, 900, 3), (700, 40), (120, 120, 3)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_nothing_in_flat_images(shape: tuple[int, ...], level: int) -> None:
    detector = default_detector()
    for effort in range(detector.efforts):
        assert detector.detect(np.full(shape, level, np.uint8), effort) == []


@needs_data
def test_portraits() -> None:
    """Nearly every portrait shows one face, where Haar finds it too; upside down, few do."""
    detector, haar = default_detector(), HaarDetector()
    with zipfile.ZipFile(DATA / "faces" / "portraits.zip") as archive:
        names = sorted(archive.namelist())[::16]
        images = [load_image(archive.read(name)) for name in names]
    one = apart = upside_down = 0
    for image in images:
        found = detector.detect(image)
        one += len(found) == 1
        others: list[Detection] = haar.detect(image)
        apart += bool(found and others) and overlap(found[0].box, others[0].box) < 0.5
        upside_down += len(detector.detect(np.ascontiguousarray(image[::-1])))
    assert one >= 19
    assert apart <= 1
    assert upside_down <= 4


@needs_data
def test_coordinates_follow_the_image() -> None:
    """A face moves and grows with the image."""
    detector = default_detector()
    with zipfile.ZipFile(DATA / "faces" / "portraits.zip") as archive:
        image = load_image(archive.read(sorted(archive.namelist())[0]))
    x, y, *sides = detector.detect(image)[0].box
    moved = np.pad(image, ((60, 0), (90, 0), (0, 0)), mode="edge")
    large = np.asarray(cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC), np.uint8)
    for other, expected in (
        (moved, (x + 90, y + 60, *sides)),
        (large, tuple(4 * v for v in (x, y, *sides))),
    ):
        found = detector.detect(other)[0].box
        assert overlap(found, expected) > 0.8
        assert found[2] == pytest.approx(expected[2], rel=0.2)
