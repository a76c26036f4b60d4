"""Files, bytes and arrays become checked uint8 images; everything else is refused by name."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeid.runtime.errors import ImageError
from edgeid.runtime.image import MAX_BYTES, load_image

COLOUR = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
GREY = np.ascontiguousarray(COLOUR[:, :, 1])
EXACT = (".png", ".bmp")
FORMATS = (*EXACT, ".jpg", ".webp")


def encoded(extension: str, image: NDArray[np.uint8] = COLOUR) -> bytes:
    done, data = cv2.imencode(extension, image)
    assert done
    return bytes(data)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises a size; one row of data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(bytes(100)))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("extension", FORMATS)
def test_formats(extension: str) -> None:
    image = load_image(encoded(extension))
    assert image.shape == (40, 60, 3)
    assert image.dtype == np.uint8
    if extension in EXACT:
        np.testing.assert_array_equal(image, COLOUR)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_kinds_of_bytes(kind: type) -> None:
    np.testing.assert_array_equal(load_image(kind(encoded(".png"))), COLOUR)


def test_paths(tmp_path: Path) -> None:
    file = tmp_path / "face.png"
    file.write_bytes(encoded(".png"))
    np.testing.assert_array_equal(load_image(file), COLOUR)
    np.testing.assert_array_equal(load_image(str(file)), COLOUR)


def test_grey_files_stay_grey() -> None:
    np.testing.assert_array_equal(load_image(encoded(".png", GREY)), GREY)


def test_transparency_and_depth_are_dropped() -> None:
    alpha = np.dstack([COLOUR, np.full((40, 60), 128, np.uint8)])
    np.testing.assert_array_equal(load_image(encoded(".png", alpha)), COLOUR)
    deep = COLOUR.astype(np.uint16) * 257
    assert load_image(bytes(cv2.imencode(".png", deep)[1])).dtype == np.uint8


def test_exif_orientation_is_applied() -> None:
    # APP1 with one tag: orientation 6, turn clockwise.
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    segment = b"Exif\0\0" + tiff
    jpeg = encoded(".jpg")
    turned = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
    assert load_image(turned).shape == (60, 40, 3)


def test_arrays_are_passed_on() -> None:
    assert load_image(COLOUR) is COLOUR
    np.testing.assert_array_equal(load_image(GREY[:, :, None]), GREY)
    view = COLOUR[:, ::2]
    assert load_image(view).flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (COLOUR.astype(np.float32) / 255, "float32"),
        (COLOUR.astype(np.int64), "int64"),
        (GREY > 3, "bool"),
        (np.zeros((40, 60, 4), np.uint8), "alpha"),
        (np.zeros((40, 60, 2), np.uint8), "shape"),
        (np.zeros((2, 40, 60, 3), np.uint8), "shape"),
        (np.zeros(40, np.uint8), "shape"),
        (np.zeros((0, 60), np.uint8), "60 x 0"),
        (np.zeros((0, 0, 3), np.uint8), "0 x 0"),
        (np.zeros((15, 60), np.uint8), "at least 16"),
        (np.broadcast_to(np.uint8(0), (10_000, 10_000)), "more than"),
    ],
)
def test_arrays_refused(array: NDArray[np.generic], word: str) -> None:
    with pytest.raises(ImageError, match=word):
        load_image(array)


@pytest.mark.parametrize("thing", [None, 3, [1, 2], object()])
def test_other_types_refused(thing: object) -> None:
    with pytest.raises(ImageError, match=type(thing).__name__):
        load_image(thing)  # type: ignore[arg-type]


def test_paths_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no image file"):
        load_image(tmp_path / "absent.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be read"):
        load_image("nul\0byte.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path / "pipe.jpg")  # reading it would wait for ever


def test_huge_files_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "huge.jpg"
    with file.open("wb") as sparse:
        sparse.truncate(MAX_BYTES + 1)
    with pytest.raises(ImageError, match="at most"):
        load_image(file)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"GIF89a" + bytes(50), b"\x80\x04K\x01.", b"II*\0" + bytes(60)]
)
def test_other_formats_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"empty|JPEG, PNG, BMP or WebP"):
        load_image(data)


@pytest.mark.parametrize("extension", FORMATS)
def test_every_truncation_is_refused(extension: str) -> None:
    data = encoded(extension)
    lengths = sorted({0, 1, 2, 3, 8, 16, 30, *range(40, len(data) - 2, 211), len(data) - 1})
    for length in lengths:
        with pytest.raises(ImageError):
            load_image(data[:length])


def test_progressive_jpeg_and_embedded_end_marks() -> None:
    progressive = cv2.imencode(".jpg", COLOUR, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1]
    data = bytes(progressive)
    assert load_image(data).shape == (40, 60, 3)
    # A thumbnail's end mark inside a segment is not the image's.
    thumbnail = b"\xff\xe1" + struct.pack(">H", 6) + b"\xff\xd8\xff\xd9"
    with pytest.raises(ImageError, match="end mark"):
        load_image(data[:2] + thumbnail + data[2:-2])
    assert load_image(data[:2] + thumbnail + data[2:]).shape == (40, 60, 3)


def test_damaged_png_is_refused() -> None:
    data = bytearray(encoded(".png"))
    data[len(data) // 2] ^= 0x10
    with pytest.raises(ImageError, match="checksum"):
        load_image(bytes(data))


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (2**31 - 1, 1000)])
def test_png_bombs_are_refused_before_decoding(width: int, height: int) -> None:
    with pytest.raises(ImageError, match="more than the 64,000,000"):
        load_image(png_of_size(width, height))


def test_bombs_of_other_formats() -> None:
    jpeg = bytearray(encoded(".jpg"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    webp = b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4)
    webp += b"\xff\xff\xff" * 2 + bytes(8)
    for data in (bytes(jpeg), webp):
        with pytest.raises(ImageError, match="more than the 64,000,000"):
            load_image(data)


def test_small_files_refused() -> None:
    with pytest.raises(ImageError, match="at least 16"):
        load_image(encoded(".png", COLOUR[:8, :8]))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), extension=st.sampled_from([".png", ".bmp", ".jpg"]))
def test_damage_gives_an_image_or_an_image_error(data: st.DataObject, extension: str) -> None:
    whole = bytearray(encoded(extension))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, min(len(whole), 80) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = load_image(bytes(whole))
    except ImageError:
        return
    assert image.dtype == np.uint8
    assert min(image.shape[:2]) >= 16
