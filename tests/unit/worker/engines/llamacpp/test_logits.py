"""The rows of logits: the view is kept while it is right, and tells rows that are not valid."""

import ctypes as c

import numpy as np
import pytest

from worker.engines.llamacpp.logits import Logits

_VOCAB = 70


class _Library:
    """`llama_get_logits` of a buffer that may move."""

    def __init__(self) -> None:
        self.move()

    def move(self) -> None:
        self.rows = np.random.default_rng(0).random((4, _VOCAB), np.float32)

    def get_logits(self, _context: int) -> int:
        return self.rows.ctypes.data_as(c.c_void_p).value or 0


@pytest.fixture
def library() -> _Library:
    return _Library()


@pytest.fixture
def logits(library: _Library) -> Logits:
    return Logits(library, 1, _VOCAB)  # type: ignore[arg-type]


def test_the_rows_are_the_memory_of_the_library(library: _Library, logits: Logits) -> None:
    rows = logits.rows(3)
    assert rows.shape == (3, _VOCAB)
    rows[2, 5] = 7
    assert library.rows[2, 5] == 7
    assert logits.rows(3) is rows
    assert logits.rows(0).shape == (0, _VOCAB)
    assert logits.best(logits.rows(0)) == ([], [])


def test_rows_that_moved_or_grew_are_seen(library: _Library, logits: Logits) -> None:
    assert logits.rows(2).shape == (2, _VOCAB)
    assert logits.rows(4).shape == (4, _VOCAB)
    old, _ = library.rows, library.move()
    library.rows[0, 9] = 9
    assert logits.rows(4)[0, 9] == 9
    assert old[0, 9] != 9


@pytest.mark.parametrize("place", [0, 1, 33, _VOCAB - 1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_bad_value_spoils_its_row_alone(
    library: _Library, logits: Logits, place: int, value: float
) -> None:
    library.rows[:, 40] = 5
    library.rows[1, place] = value
    best = logits.best(logits.rows(4))
    assert best.is_valid == [True, False, True, True]
    assert [best.tokens[row] for row in (0, 2, 3)] == [40, 40, 40]


def test_a_row_without_a_finite_value_is_not_valid(library: _Library, logits: Logits) -> None:
    library.rows[0] = -np.inf
    library.rows[1, 1:] = -np.inf
    assert logits.best(logits.rows(2)) == ([0, 0], [False, True])
