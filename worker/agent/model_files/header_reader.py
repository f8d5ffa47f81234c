"""Reads the front of a large binary file through a small window, front to back.

Memory is bounded by the window and by the sizes that callers ask for: a length from the file is
compared with the file's size first. The file is not mapped, because a mapped file that another
process truncates kills its reader with SIGBUS.
"""

import struct
from typing import BinaryIO

from worker.agent.model_files.errors import ModelFileError

_WINDOW_BYTES = 1 << 20
_LENGTH = struct.Struct("<Q")


class HeaderReader:
    """All methods raise ModelFileError if the file ends too early."""

    def __init__(self, file: BinaryIO, file_bytes: int) -> None:
        self._file = file
        self._file_bytes = file_bytes
        self._window = b""
        self._window_at = 0
        """Offset of the window in the file."""
        self._next = 0
        """Offset of the next byte in the window; beyond its end after a long skip."""

    @property
    def position(self) -> int:
        return self._window_at + self._next

    @property
    def remaining_bytes(self) -> int:
        return self._file_bytes - self.position

    def take(self, num_bytes: int) -> bytes:
        """Return the next bytes. The caller bounds `num_bytes`."""
        if self._next + num_bytes > len(self._window):
            self._refill(num_bytes)
        start = self._next
        self._next += num_bytes
        return self._window[start : self._next]

    def skip(self, num_bytes: int) -> None:
        """Skip bytes without reading them."""
        self._require(num_bytes)
        self._next += num_bytes

    def unpack(self, layout: struct.Struct) -> int | float | bool:
        """Return the next value, in a layout of one field."""
        value: int | float | bool = layout.unpack(self.take(layout.size))[0]
        return value

    def skip_strings(self, num_strings: int) -> None:
        """Skip strings that each follow their length in 8 bytes: the tokens of a vocabulary.

        There may be 300,000 of them, so the loop keeps its state in local names.
        """
        self._require(8 * num_strings)
        window, at = self._window, self._next
        unpack, size = _LENGTH.unpack_from, len(self._window)
        for _ in range(num_strings):
            if at + 8 > size:
                self._next = at
                self._refill(8)
                window, at, size = self._window, self._next, len(self._window)
            at += 8 + unpack(window, at)[0]
        self._next = at
        # Lengths were added unchecked: the last one may have led beyond the end of the file.
        self._require(0)

    def _refill(self, num_bytes: int) -> None:
        """Move the window to the current position; it then holds at least `num_bytes`."""
        self._require(num_bytes)
        self._window_at, self._next = self.position, 0
        self._file.seek(self._window_at)
        self._window = self._file.read(max(num_bytes, _WINDOW_BYTES))
        if len(self._window) < num_bytes:
            raise ModelFileError("the file was truncated while its header was read")

    def _require(self, num_bytes: int) -> None:
        missing_bytes = num_bytes - self.remaining_bytes
        if missing_bytes > 0:
            raise ModelFileError(
                f"the header is cut short: the file has {self._file_bytes:,} bytes, and its header "
                f"needs at least {missing_bytes:,} more"
            )
