"""The number of threads of numpy's matrix products is set for a block, and set back."""

from __future__ import annotations

import pytest

from edgeid.runtime import blas
from edgeid.runtime.blas import blas_threads


class Library:
    """Stands for OpenBLAS with eight threads."""

    count = 8

    def scipy_openblas_get_num_threads64_(self):
        return self.count

    def scipy_openblas_set_num_threads64_(self, count):
        self.count = count


@pytest.fixture
def library(monkeypatch):
    made = Library()
    monkeypatch.setattr(blas, "_openblas", lambda: made)
    return made


def test_the_count_holds_in_the_block_only(library):
    with blas_threads(2):
        assert library.count == 2
    assert library.count == 8


def test_the_count_is_set_back_after_an_error(library):
    with pytest.raises(ZeroDivisionError), blas_threads(1):
        raise ZeroDivisionError
    assert library.count == 8


def test_without_openblas_nothing_happens(monkeypatch):
    monkeypatch.setattr(blas, "_openblas", lambda: None)
    with blas_threads(1):
        pass


def test_the_real_library_obeys():
    library = blas._openblas()
    if library is None:
        pytest.skip("numpy brings no OpenBLAS of its own here")
    before = library.scipy_openblas_get_num_threads64_()
    with blas_threads(1):
        assert library.scipy_openblas_get_num_threads64_() == 1
    assert library.scipy_openblas_get_num_threads64_() == before
