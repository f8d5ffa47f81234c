"""The input of one decode call: a llama_batch over numpy arrays, written in bulk."""

import ctypes as c
from dataclasses import dataclass

import numpy as np

from worker.engines.llamacpp.bindings import Batch


@dataclass(slots=True)
class Part:
    """The tokens of one sequence in a batch."""

    seq_id: int
    first_pos: int
    """Position of the first token in its sequence."""
    tokens: list[int]
    num_outputs: int
    """Number of last tokens whose logits are computed."""


class BatchBuffer:
    """Holds up to `size` tokens. `struct` is the argument of `llama_decode`."""

    def __init__(self, size: int) -> None:
        self._token = np.zeros(size, np.int32)
        self._pos = np.zeros(size, np.int32)
        self._output = np.zeros(size, np.int8)
        self._seq_id = np.zeros(size, np.int32)
        # Every token belongs to one sequence; the i-th pointer points at its id.
        self._num_seq_ids = np.ones(size, np.int32)
        addresses = self._seq_id.ctypes.data + self._seq_id.itemsize * np.arange(size)
        self._seq_id_pointers = addresses.astype(np.uintp)
        int_pointer = c.POINTER(c.c_int32)
        self.struct = Batch(
            0,
            self._token.ctypes.data_as(int_pointer),
            None,
            self._pos.ctypes.data_as(int_pointer),
            self._num_seq_ids.ctypes.data_as(int_pointer),
            self._seq_id_pointers.ctypes.data_as(c.POINTER(int_pointer)),
            self._output.ctypes.data_as(c.POINTER(c.c_int8)),
        )

    def fill(self, parts: list[Part]) -> list[int]:
        """Write the parts; return the batch row of each part's last token."""
        tokens: list[int] = []
        positions: list[int] = []
        seq_ids: list[int] = []
        flags: list[bool] = []
        last_rows: list[int] = []
        for part in parts:
            num_tokens = len(part.tokens)
            tokens += part.tokens
            if num_tokens == 1:
                positions.append(part.first_pos)
                seq_ids.append(part.seq_id)
            else:
                positions += range(part.first_pos, part.first_pos + num_tokens)
                seq_ids += [part.seq_id] * num_tokens
            flags += [False] * (num_tokens - part.num_outputs) + [True] * part.num_outputs
            last_rows.append(len(tokens) - 1)
        n = len(tokens)
        self._token[:n] = tokens
        self._pos[:n] = positions
        self._seq_id[:n] = seq_ids
        self._output[:n] = flags
        self.struct.n_tokens = n
        return last_rows

    def advance(self, tokens: list[int]) -> None:
        """Write the next token of each sequence of a batch that had one token of each."""
        n = self.struct.n_tokens
        self._token[:n] = tokens
        self._pos[:n] += 1
