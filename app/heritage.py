"""What a web process has from gunicorn's master, for the application that `app.wsgi` makes."""

from dataclasses import dataclass


@dataclass(slots=True)
class Heritage:
    is_first: bool = True
    """No process of this master has served yet: what is wrong with files ends the start. Later it
    is logged, and the process starts as well as it can."""
    denylist_name: str = ""
    """Path of the denylist that the master reads; empty = none."""
    denylist: bytes = b""
    """The file as it was when it was valid last."""

    def denylist_at(self, path: str) -> bytes | None:
        return self.denylist if path == self.denylist_name else None


heritage = Heritage()
