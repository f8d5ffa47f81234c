"""The files of a web process's counters, which prometheus_client maps into memory, with their room
on the disk taken beforehand: a write to a mapped page that a full disk has no place for would kill
the process (SIGBUS).

Where there is no room, or no folder to write to, the counters go on in memory alone: requests are
served, and not counted for others.
"""

import logging
import mmap
import os
from contextlib import suppress
from pathlib import Path

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

_log = logging.getLogger(__name__)
_INITIAL_BYTES = 1 << 16
_MAX_ENTRY_BYTES = 32
"""Of an entry besides its key."""


def install() -> None:
    """Before the first metric is made."""
    values.MmapedDict = CounterFile  # type: ignore[attr-defined]


class CounterFile(MmapedDict):
    def __init__(self, filename: str, read_mode: bool = False) -> None:
        path = Path(filename)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _allocate(path)
            super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]
        except OSError as exc:
            _complain(filename, exc)
            with suppress(OSError):
                path.unlink()
            self._memory = os.memfd_create("counters")
            super().__init__(f"/proc/self/fd/{self._memory}")  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + _MAX_ENTRY_BYTES > self._capacity:
            self._grow(2 * self._capacity + len(key.encode()))
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _grow(self, capacity: int) -> None:
        try:
            os.posix_fallocate(self._f.fileno(), 0, capacity)
        except OSError as exc:
            _complain(self._fname, exc)
            file = os.fdopen(os.memfd_create("counters"), "r+b", buffering=0)
            file.write(self._m[:])
            file.truncate(capacity)
            self._f.close()
            self._f = file
        self._m = mmap.mmap(self._f.fileno(), capacity)
        self._capacity = capacity


def _allocate(path: Path) -> None:
    with path.open("ab") as file:
        if not file.tell():
            os.posix_fallocate(file.fileno(), 0, _INITIAL_BYTES)


def _complain(filename: str, exc: OSError) -> None:
    _log.error("%s has no room, this process counts in memory alone: %s", filename, exc)
