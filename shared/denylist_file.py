"""The denylist as its file is at present. Each process looks at its host's file by itself."""

import logging
from pathlib import Path

from shared.denylist import Denylist, parse, payload_of
from shared.errors import SettingsError
from shared.settings import Settings

_log = logging.getLogger(__name__)
_Stamp = tuple[int, int, int] | None


class DenylistFile:
    """`current` may be read by any thread; one calls `look`."""

    def __init__(self, path: Path, earlier: bytes | None = None) -> None:
        """`earlier`: what the file said when it was valid. Raises SettingsError when it is not
        now and nothing is known from earlier."""
        self._path = path
        self.current: Denylist
        self.payload: bytes
        """What `current` was read from."""
        self._stamp = self._read_stamp()
        try:
            self._read()
        except SettingsError as exc:
            if earlier is None:
                raise
            _log.error("the denylist stays as it was: %s", exc)
            self.payload, self.current = earlier, parse(path, earlier)

    def _read(self) -> None:
        """Raises SettingsError."""
        payload = payload_of(self._path)
        self.current = parse(self._path, payload)
        self.payload = payload

    def look(self) -> None:
        """Read the file again if it has changed. One that is not valid changes nothing."""
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

    def _read_stamp(self) -> _Stamp:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def denylist_of(settings: Settings, earlier: bytes | None = None) -> DenylistFile | None:
    """None = the filter is off. Raises SettingsError with the file, the rule and the reason."""
    path = settings.denylist_path
    return DenylistFile(path, earlier) if path is not None else None
