"""How long streams stood still: the times between two pieces of text that a client waited for."""

import statistics
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec import Struct

_PAUSE_S = 0.5
"""Shorter times without text are not reported: a busy machine has them, too."""
MEDIAN_S, LONGEST_S = 3.0, 6.0
"""What a run with a model that loads in a second must keep to (docs/reliability.md)."""


class Pause(NamedTuple):
    began_at: float
    """Unix time, to find it in the logs."""
    seconds: float

    def __str__(self) -> str:
        began = time.strftime("%H:%M:%S", time.gmtime(self.began_at))
        return f"no text for {self.seconds:.1f} s from {began} on"


@dataclass
class Pauses:
    """Of one request, over all its tries."""

    found: list["Pause"] = field(default_factory=list)
    _text_at: float | None = None

    def note_text(self) -> None:
        now = time.monotonic()
        if self._text_at is not None and now - self._text_at >= _PAUSE_S:
            seconds = now - self._text_at
            self.found.append(Pause(time.time() - seconds, seconds))
        self._text_at = now


class PauseReport(Struct, frozen=True):
    number: int
    median_s: float = 0.0
    p99_s: float = 0.0
    longest_s: float = 0.0

    @classmethod
    def of(cls, pauses_s: list[float]) -> "PauseReport":
        if not pauses_s:
            return cls(0)
        ordered = sorted(pauses_s)
        p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        shown = (statistics.median(ordered), p99, ordered[-1])
        return cls(len(ordered), *(round(seconds, 1) for seconds in shown))

    @property
    def problems(self) -> list[str]:
        found = []
        if self.median_s > MEDIAN_S:
            found.append(f"the median of the pauses is {self.median_s} s, more than {MEDIAN_S:g} s")
        if self.longest_s > LONGEST_S:
            found.append(f"a stream stood still for {self.longest_s} s, more than {LONGEST_S:g} s")
        return found

    def __str__(self) -> str:
        return (
            f"{self.number} pauses of {_PAUSE_S:g} s or more: median {self.median_s} s, "
            f"99th percentile {self.p99_s} s, longest {self.longest_s} s"
        )
