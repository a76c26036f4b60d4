"""Image files, bytes and arrays as one thing: a checked uint8 array.

Bytes from outside are read with suspicion: the container is walked before any decoder sees it, so
that truncated files, which OpenCV decodes without a word, and files that announce more pixels
than memory holds are refused by name. JPEG, PNG, BMP and WebP are read, everything else is not:
each further decoder is one more way in.
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.errors import ImageError

__all__ = ["MAX_BYTES", "MAX_PIXELS", "MIN_SIDE", "ImageSource", "check_array", "load_image"]

Image = NDArray[np.uint8]
ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | NDArray[Any]

MAX_PIXELS = 64_000_000
"""More than the largest phone cameras make; 192 MB as BGR."""
MAX_BYTES = 64 * 1024 * 1024
MIN_SIDE = 16

_FORMATS = "JPEG, PNG, BMP or WebP"
# In entropy-coded JPEG data FF 00 is a stuffed byte, FF D0..D7 a restart, FF FF a fill.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def load_image(image: ImageSource) -> Image:
    """An image as uint8 (H, W) grey or (H, W, 3) BGR, contiguous.

    Args:
        image: path of a file, the bytes of one (JPEG, PNG, BMP, WebP; EXIF orientation is
            applied, transparency is dropped, 16 bits become 8), or an array as OpenCV gives it:
            uint8, (H, W), (H, W, 1) or (H, W, 3) in the order B, G, R. An array is not copied
            when it is contiguous. Four channels are refused, because what lies under
            transparent pixels, and whether R or B comes first, cannot be known here.

    Raises:
        ImageError: missing, unreadable, truncated, of another type, shape or format, under
            16 pixels a side, over 64 million pixels or over 64 MiB.
    """
    if isinstance(image, np.ndarray):
        return check_array(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return _decode(bytes(image), "image bytes")
    if isinstance(image, str | os.PathLike):
        return _decode(_read(image), str(image))
    raise ImageError(f"image is a {type(image).__name__}: a path, bytes or a uint8 array is needed")


def check_array(image: NDArray[Any]) -> Image:
    """The array itself, contiguous, when it is a usable image; else ImageError."""
    if image.dtype != np.uint8:
        raise ImageError(
            f"image array of {image.dtype}: uint8 with values 0 to 255 is needed "
            "(scale floats by 255, then .astype(numpy.uint8))"
        )
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim == 3 and image.shape[2] == 4:
        raise ImageError(
            f"image array of shape {image.shape} has an alpha channel: convert it to BGR "
            "first, e.g. cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)"
        )
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ImageError(f"image array of shape {image.shape}: (H, W) or (H, W, 3) is needed")
    _check_size(image.shape[1], image.shape[0], "image array")
    return np.ascontiguousarray(image)


def _check_size(width: int, height: int, name: str) -> None:
    if width < MIN_SIDE or height < MIN_SIDE:
        raise ImageError(f"{name} is {width} x {height} pixels: at least {MIN_SIDE} a side needed")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} is {width} x {height} pixels: more than the {MAX_PIXELS:,} that are read; "
            "scale it down first"
        )


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path} is not a regular file: an image file is needed")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{path} has {status.st_size:,} bytes: at most {MAX_BYTES:,} are read")
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError(f"there is no image file {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ImageError(f"image file {path!r} cannot be read: {error}") from error


def _decode(data: bytes, name: str) -> Image:
    import cv2

    width, height = _inspect(data, name)
    _check_size(width, height, name)
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR)
    except cv2.error as error:
        raise ImageError(f"{name} cannot be decoded: {error.err}") from error
    if decoded is None:
        raise ImageError(f"{name} cannot be decoded: its contents are damaged")
    image = check_array(decoded)
    if image.shape[0] * image.shape[1] != width * height:
        raise ImageError(f"{name} says {width} x {height} pixels but holds {image.shape[:2]}")
    return image


def _inspect(data: bytes, name: str) -> tuple[int, int]:
    """Width and height from the header of a file that is whole; nothing is decoded."""
    if not data:
        raise ImageError(f"{name} is empty (0 bytes)")
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name} has {len(data):,} bytes: at most {MAX_BYTES:,} are read")
    walkers = (
        (data.startswith(b"\xff\xd8\xff"), _walk_jpeg),
        (data.startswith(b"\x89PNG\r\n\x1a\n"), _walk_png),
        (data.startswith(b"BM"), _walk_bmp),
        (data[:4] == b"RIFF" and data[8:12] == b"WEBP", _walk_webp),
    )
    for matches, walk in walkers:
        if matches:
            try:
                return walk(data)
            except _TruncatedError as error:
                raise ImageError(
                    f"{name} is truncated or damaged: {error} ({len(data):,} bytes)"
                ) from None
    raise ImageError(f"{name} is not an image that is read here: {_FORMATS} is needed")


class _TruncatedError(Exception):
    """A container ends, or goes wrong, before its end mark."""


def _number(data: bytes, start: int, size: int, order: str = "big") -> int:
    if start + size > len(data):
        raise _TruncatedError("it ends inside a header")
    return int.from_bytes(data[start : start + size], "little" if order == "little" else "big")


def _walk_jpeg(data: bytes) -> tuple[int, int]:
    """Marker segments up to the end mark (ITU T.81, annex B); sizes from the frame header."""
    size: tuple[int, int] | None = None
    at = 2
    while True:
        found = _JPEG_MARKER.search(data, at)
        if found is None:
            raise _TruncatedError("the JPEG end mark is missing")
        marker, at = data[found.start() + 1], found.end()
        if marker == 0xD9:
            break
        if marker in (0x01, 0xD8):
            continue
        length = _number(data, at, 2)
        if length < 2 or at + length > len(data):
            raise _TruncatedError(f"JPEG segment {marker:02X} does not fit")
        if marker in _JPEG_FRAMES:
            size = _number(data, at + 5, 2), _number(data, at + 3, 2)
        at += length
    if size is None:
        raise _TruncatedError("it holds no JPEG frame")
    return size


def _walk_png(data: bytes) -> tuple[int, int]:
    """Chunks with their checksums up to IEND (PNG specification, section 5)."""
    at = 8
    if data[12:16] != b"IHDR":
        raise _TruncatedError("the PNG header chunk is missing")
    while True:
        length = _number(data, at, 4)
        stored = _number(data, at + 8 + length, 4)
        if zlib.crc32(data[at + 4 : at + 8 + length]) != stored:
            raise _TruncatedError(f"the checksum of PNG chunk {data[at + 4 : at + 8]!r} is wrong")
        if data[at + 4 : at + 8] == b"IEND":
            return _number(data, 16, 4), _number(data, 20, 4)
        at += 12 + length


def _walk_bmp(data: bytes) -> tuple[int, int]:
    """BITMAPINFOHEADER, uncompressed: the rows must all be there."""
    if _number(data, 14, 4, "little") < 40:
        raise _TruncatedError("its BMP header is of an unsupported, old kind")
    width = _number(data, 18, 4, "little")
    height = _number(data, 22, 4, "little")
    height = min(height, 2**32 - height)  # negative: the rows run from the top
    if _number(data, 30, 4, "little") not in (0, 3):
        raise _TruncatedError("run-length coded BMP is not supported")
    row = (width * _number(data, 28, 2, "little") + 31) // 32 * 4
    if _number(data, 10, 4, "little") + row * height > len(data):
        raise _TruncatedError(f"{width} x {height} BMP pixels do not fit")
    return width, height


def _walk_webp(data: bytes) -> tuple[int, int]:
    """RIFF size and the first chunk's dimensions (RFC 9649, sections 2.3 to 2.7)."""
    if _number(data, 4, 4, "little") + 8 > len(data):
        raise _TruncatedError("the WebP container is longer than the file")
    kind = data[12:16]
    if kind == b"VP8X":
        return _number(data, 24, 3, "little") + 1, _number(data, 27, 3, "little") + 1
    if kind == b"VP8L":
        bits = _number(data, 21, 4, "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return _number(data, 26, 2, "little") & 0x3FFF, _number(data, 28, 2, "little") & 0x3FFF
    raise _TruncatedError(f"its first WebP chunk is {kind!r}")
