"""How many threads numpy's matrix products use.

The OpenBLAS inside numpy's wheels starts a thread a core and lets them spin while they wait.
Where another process wants the cores, one verification then takes seconds in place of a tenth
of one. The library has a setting for it, which numpy does not pass on.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np


@contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Run the block's matrix products on ``count`` threads, then set back what was before.

    The setting is the process's own: products of other threads meanwhile use it too. Where
    numpy brings another BLAS (a Linux distribution's, Apple's) nothing is changed.
    """
    library = _openblas()
    before = library.scipy_openblas_get_num_threads64_() if library else 0
    if library is None or before == count:
        yield
        return
    library.scipy_openblas_set_num_threads64_(count)
    try:
        yield
    finally:
        library.scipy_openblas_set_num_threads64_(before)


@cache
def _openblas() -> ctypes.CDLL | None:
    """The OpenBLAS that numpy has loaded from its own wheel, or None."""
    folder = Path(np.__file__).parent
    for place in (folder.with_name("numpy.libs"), folder / ".dylibs"):
        for path in sorted(place.glob("*scipy_openblas64_*")):
            try:
                library = ctypes.CDLL(str(path))
                library.scipy_openblas_get_num_threads64_.restype = ctypes.c_int
                library.scipy_openblas_set_num_threads64_.argtypes = [ctypes.c_int]
            except (OSError, AttributeError):
                continue
            return library
    return None
