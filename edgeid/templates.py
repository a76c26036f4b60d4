"""What a store holds of one person: a name, and the embeddings of face and voice."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.errors import InputError

MAX_NAME = 128

Vectors = NDArray[np.float32]


def _no_vectors() -> Vectors:
    return np.empty((0, 0), np.float32)


@dataclass(frozen=True, eq=False)
class Templates:
    """The embeddings of one person, personal data: ``repr`` shows their shapes only.

    Attributes:
        face: float32 (n, d), n may be 0.
        voice: float32 (m, e), m may be 0.

    Raises:
        InputError: an array of another shape, or not finite.
    """

    face: Vectors = field(default_factory=_no_vectors)
    voice: Vectors = field(default_factory=_no_vectors)

    def __post_init__(self) -> None:
        for modality in ("face", "voice"):
            array = np.asarray(getattr(self, modality), np.float32)
            if array.ndim != 2 or (len(array) and not array.shape[1]):
                raise InputError(f"{modality} templates are an array (n, d), not {array.shape}")
            if not np.isfinite(array).all():
                raise InputError(f"a {modality} template holds NaN or infinity")
            object.__setattr__(self, modality, array)

    def __iter__(self) -> Iterator[tuple[str, Vectors]]:
        """Every vector with its modality."""
        yield from (("face", vector) for vector in self.face)
        yield from (("voice", vector) for vector in self.voice)

    def __len__(self) -> int:
        return len(self.face) + len(self.voice)

    def __repr__(self) -> str:
        return f"Templates(face {self.face.shape}, voice {self.voice.shape})"


def check_name(name: str) -> str:
    """``name`` in Unicode's composed form (NFC), so that equal-looking names are equal.

    Raises:
        InputError: not a string of 1 to 128 printable characters without outer blanks.
    """
    if not isinstance(name, str):
        raise InputError(f"a user name is a string, not {type(name).__name__}")
    composed = unicodedata.normalize("NFC", name)
    if not 1 <= len(composed) <= MAX_NAME:
        raise InputError(f"a user name has 1 to {MAX_NAME} characters, this has {len(composed)}")
    if not composed.isprintable() or composed != composed.strip():
        raise InputError(
            f"the user name {composed[:40]!a} has invisible or outer blank characters: "
            "use printable ones"
        )
    return composed
