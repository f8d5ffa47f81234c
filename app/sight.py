"""How well this process sees the registry: what its copy is worth."""

import time

from shared.registry import RECORD_TTL_S

_FRESH_S = 2.0 * RECORD_TTL_S
"""Of a copy that is older nothing need be true any more: the records in it have expired."""


class Sight:
    def __init__(self) -> None:
        self._seen_at = time.monotonic()
        self._is_clouded = False

    def clear(self) -> None:
        """The registry has just been read."""
        self._seen_at, self._is_clouded = time.monotonic(), False

    def cloud(self) -> None:
        """Redis did not answer."""
        self._is_clouded = True

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() - self._seen_at < _FRESH_S

    @property
    def is_clear(self) -> bool:
        """Whether the registry could be read at the last beat. A beat that hangs counts, too."""
        return self.is_fresh and not self._is_clouded
