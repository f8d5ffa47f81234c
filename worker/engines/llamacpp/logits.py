"""The logits of the last decode call, and the best token of each row."""

import ctypes as c
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.engines.llamacpp.bindings import Library

Rows = NDArray[np.float32]
"""`(num_rows, vocab_size)`."""


class Best(NamedTuple):
    """The best token of each row."""

    tokens: list[int]
    is_valid: list[bool]
    """Whether the row has neither NaN nor positive infinity, and a finite value."""


class Logits:
    """The rows in llama.cpp's own memory: what is written there counts for its samplers."""

    def __init__(self, library: Library, context: int, vocab_size: int) -> None:
        self._lib = library
        self._context = context
        self._vocab_size = vocab_size
        self._address: int | None = None
        self._rows = np.empty((0, vocab_size), np.float32)
        self._row_ids = np.arange(0)

    def rows(self, num_rows: int) -> Rows:
        """The array is made again only when llama.cpp has moved the rows, or their number changes:
        making it takes as long as drawing from it."""
        address: int | None = self._lib.get_logits(self._context) if num_rows else self._address
        if address != self._address or num_rows != len(self._rows):
            self._address = address
            self._rows = self._view(address, num_rows)
        return self._rows

    def _view(self, address: int | None, num_rows: int) -> Rows:
        if not num_rows or address is None:
            return np.empty((0, self._vocab_size), np.float32)
        buffer = (c.c_float * (num_rows * self._vocab_size)).from_address(address)
        return np.ctypeslib.as_array(buffer).reshape(num_rows, self._vocab_size)

    def best(self, rows: Rows) -> Best:
        """The best token of each of the rows."""
        if len(rows) != len(self._row_ids):
            self._row_ids = np.arange(len(rows))
        tokens = rows.argmax(axis=1)
        # If any value of a row is NaN, arg max is the first of them.
        is_valid = np.isfinite(rows[self._row_ids, tokens])
        return Best(tokens.tolist(), is_valid.tolist())
