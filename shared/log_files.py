"""Keeps the log files of processes small. The process that opened a log for others rotates it; they
hold it open as standard error, so it is emptied in place, and they have to append."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import IO

from shared.settings.fields import Settings

_MAX_LINE_BYTES = 65_536


def rotate(path: Path, settings: Settings) -> None:
    """Copy a log over `log_max_bytes` to `path.1` and empty it. A line written in between is lost.
    Raises OSError if the copy failed; the log is empty all the same, as the disk may be full."""
    with contextlib.suppress(FileNotFoundError):
        if not 0 < settings.log_max_bytes < path.stat().st_size:
            return
        try:
            _make_room(path, settings)
            if settings.log_files_kept:
                _copy(path, _numbered(path, 1))
        finally:
            os.truncate(path, 0)


def _make_room(path: Path, settings: Settings) -> None:
    """Rename `path.1` to `path.2`, and so on; the last one that is kept is overwritten. Raises
    OSError."""
    for number in range(settings.log_files_kept, 1, -1):
        with contextlib.suppress(FileNotFoundError):
            _numbered(path, number - 1).replace(_numbered(path, number))


def set_aside(path: Path, settings: Settings) -> None:
    """Rename a log that nothing writes any more to `path.1`. Raises OSError."""
    if path.exists() and settings.log_files_kept:
        _make_room(path, settings)
        path.replace(_numbered(path, 1))


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _copy(path: Path, target: Path) -> None:
    try:
        with path.open("rb") as source:
            mode = os.fstat(source.fileno()).st_mode & 0o777
            target.unlink(missing_ok=True)
            descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "w+b") as kept:
                shutil.copyfileobj(source, kept, 1024 * 1024)
                _drop_torn_line(kept)
    except OSError:
        target.unlink(missing_ok=True)
        raise


def _drop_torn_line(file: IO[bytes]) -> None:
    """Drop the last line if it is incomplete: a reader may see a part of a write."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MAX_LINE_BYTES))
    tail = file.read()
    if end := tail.rfind(b"\n") + 1:
        file.truncate(size - len(tail) + end)
