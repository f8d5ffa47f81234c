"""The denylist as its file says at present. Each process reads the file of its host by itself.

The last valid file with rules is kept in the data folder: a process that starts while the file is
invalid takes its rules from there, whichever process read them.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
from pathlib import Path

from shared.denylist.denylist import Denylist, parse, payload_of, read
from shared.errors import SettingsError
from shared.settings.fields import Settings

_log = logging.getLogger(__name__)
_KEPT_NAME = "denylist.{}.last-valid.toml"
"""With a hash of the file's path: another file has other rules."""
_Stamp = tuple[int, int, int] | None
"""Modification time in ns, size, inode; None = there is no file."""


class DenylistFile:
    """`current` may be read by any thread; one thread calls `refresh`."""

    def __init__(self, path: Path, data_path: Path) -> None:
        """Raises SettingsError when the file is invalid and no valid one was kept."""
        self._path = path
        self._kept_path = data_path / _KEPT_NAME.format(
            hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
        )
        self.current: Denylist
        self._stamp = self._read_stamp()
        try:
            self._read()
        except SettingsError as exc:
            try:
                self.current = read(self._kept_path)
            except SettingsError:
                raise exc from None
            _log.error("the denylist stays as it was: %s", exc)

    def refresh(self) -> None:
        """Read the file again if it has changed. An invalid one changes nothing."""
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._read()
        except SettingsError as exc:
            _log.error("the denylist stays as it was: %s", exc)
        else:
            _log.info("denylist read again", extra={"rules": len(self.current.rules)})

    def _read(self) -> None:
        """Raises SettingsError."""
        payload = payload_of(self._path)
        self.current = parse(self._path, payload)
        if not self.current.rules:
            return  # not kept: it may be the first half of what an editor writes
        try:
            _keep(self._kept_path, payload)
        except OSError as exc:
            _log.warning("the denylist cannot be kept for later starts: %s", exc)

    def _read_stamp(self) -> _Stamp:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _keep(path: Path, payload: bytes) -> None:
    """Write the file unless it says the same. Other processes may do so at the same time: each
    writes a file of its own, and renames it. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == payload:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        new = Path(file.name)
        try:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
            new.replace(path)
        except OSError:
            new.unlink()
            raise


def denylist_of(settings: Settings) -> DenylistFile | None:
    """None = the filter is off. Raises SettingsError with the file, the rule and the reason."""
    path = settings.denylist_path
    return DenylistFile(path, settings.data_path) if path is not None else None


def check_denylist(settings: Settings) -> None:
    """For the start of a service: raise SettingsError when the file is invalid, whatever was valid
    before."""
    if settings.denylist_path is not None:
        read(settings.denylist_path)
