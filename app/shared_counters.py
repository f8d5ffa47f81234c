"""The files through which the web processes of a host share what they count.

Each process has its own, which `prometheus_client` writes; what is shown is their sum, gauges
too. Those of a process that has ended are added to files that stand for all the dead, so that
neither files nor the time to read them grow with restarts. Readers and the one who adds up hold
a lock: nothing is missing from a sum, and nothing is in it twice.

The files are read here and not by `MultiProcessCollector`: with ten models and four processes it
holds up the streams of a process for ten times as long. Nothing here maps a file into memory or
waits for a lock but a reader: gunicorn's master, which must not stop, adds up.
"""

import fcntl
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from struct import Struct

_DEAD = "dead"
"""Instead of a pid."""
_LENGTH, _VALUE, _HEAD = Struct("i"), Struct("d"), Struct("i4x")
_HEAD_BYTES, _TAIL_BYTES = 8, 16
"""Before the first entry: the bytes in use. Behind each key: its value and a time."""


def own_folder(parent: Path) -> Path:
    """Take the first of the folders 1, 2, … that no other web tier has, and empty it. It is this
    one's for as long as this process, or one that it has forked, lives. Raises OSError."""
    for number in count(1):
        folder = parent / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        owner = os.open(folder / "owner", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(owner)
            continue
        for file in folder.glob("*.db"):
            file.unlink()
        return folder
    raise AssertionError  # there is always another number


def sums_of(folder: Path) -> dict[str, dict[bytes, float]]:
    """Kind → key → the sum over all processes."""
    sums: dict[str, dict[bytes, float]] = defaultdict(lambda: defaultdict(float))
    with _locked(folder, fcntl.LOCK_SH):
        for file in sorted(folder.glob("*.db")):
            of_kind = sums[file.name.split("_")[0]]
            for key, value in _entries(file.read_bytes()):
                of_kind[key] += value
    return sums


def _entries(content: bytes) -> Iterable[tuple[bytes, float]]:
    """Source of the format: prometheus_client@v0.26.0:prometheus_client/mmap_dict.py."""
    # One that has just been created is empty for a moment.
    end = _LENGTH.unpack_from(content)[0] if len(content) >= _HEAD_BYTES else 0
    position = _HEAD_BYTES
    while position < end:
        key_at = position + 4
        length = _LENGTH.unpack_from(content, position)[0]
        value_at = key_at + length + 8 - (length + 4) % 8
        yield content[key_at : key_at + length], _VALUE.unpack_from(content, value_at)[0]
        position = value_at + _TAIL_BYTES


def bury(folder: Path, pid: int) -> None:
    """Add what a process has counted that has ended to what the dead have, and remove its files.

    Raises BlockingIOError while somebody reads, OSError when the files cannot be written: they are
    counted where they are then.
    """
    with _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
        for file in folder.glob(f"gauge_*_{pid}.db"):
            file.unlink()
        for kind in ("counter", "histogram"):
            file = folder / f"{kind}_{pid}.db"
            if file.exists():
                _add(file.read_bytes(), folder / f"{kind}_{_DEAD}.db")
                file.unlink()


def _add(content: bytes, target: Path) -> None:
    totals: dict[bytes, float] = defaultdict(float)
    for source in (target.read_bytes() if target.exists() else b"", content):
        for key, value in _entries(source):
            totals[key] += value
    body = b"".join(_entry(key, value) for key, value in totals.items())
    partial = target.with_suffix(".partial")
    try:
        partial.write_bytes(_HEAD.pack(_HEAD_BYTES + len(body)) + body)
        partial.replace(target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _entry(key: bytes, value: float) -> bytes:
    padding = b" " * (8 - (len(key) + 4) % 8)
    return _LENGTH.pack(len(key)) + key + padding + _VALUE.pack(value) + bytes(8)


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, how)
        yield
