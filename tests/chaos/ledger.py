"""What became of every request: nothing may be left open, nothing may be wrong."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.asks import Ask, Outcome
from tests.chaos.pauses import LONGEST_S, Pauses

_MAX_PROBLEMS = 50
_WEB_DOWN_S = 60.0
"""How long the death of a web process may explain a connection that breaks or is refused."""
_NOT_AN_END: dict[str, tuple[Outcome, ...]] = {"garbage": ()}
"""Outcomes that no request ends with, by kind where they differ."""


@dataclass
class Ledger:
    """Filled by all clients; read when they have ended."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Kind and final outcome."""
    tries: Counter[str] = field(default_factory=Counter)
    """Outcome of each single try of a request."""
    refusals: Counter[str] = field(default_factory=Counter)
    num_resumed: int = 0
    problems: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    pauses_s: list[float] = field(default_factory=list)
    """Of all requests that have ended."""
    long_pauses: list[str] = field(default_factory=list)
    """Requests whose stream stood still for longer than a quiet machine explains."""
    _open: dict[int, str] = field(default_factory=dict)
    _web_faults: list[float] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, kind: str, what: str) -> int:
        with self._lock:
            number = sum(self.requests.values()) + len(self._open)
            while number in self._open:
                number += 1
            self._open[number] = f"{kind}: {what}"
            return number

    def note_try(self, ask: Ask, outcome: Outcome, detail: str) -> None:
        with self._lock:
            self.tries[outcome.value] += 1
            if outcome is Outcome.REFUSED:
                self.refusals[detail] += 1
            elif outcome in (Outcome.WRONG, Outcome.HUNG):
                self._note_problem(f"{ask}: {detail}")
            elif outcome is Outcome.CUT:
                self._check_cut(str(ask))

    def end(self, number: int, kind: str, outcome: Outcome, pauses: Pauses | None = None) -> None:
        with self._lock:
            what = self._open.pop(number)
            for pause in pauses.found if pauses else ():
                self.pauses_s.append(pause.seconds)
                if pause.seconds > LONGEST_S:
                    self.long_pauses.append(f"{what}: {pause}")
            self.requests[kind, outcome.value] += 1
            if outcome in _NOT_AN_END.get(kind, (Outcome.REFUSED, Outcome.CUT)):
                self._note_problem(f"a request ({kind}) was given up: {outcome.value}")

    def note_fault(self, name: str) -> None:
        with self._lock:
            self.faults[name] += 1

    def expect_cuts(self) -> None:
        """A web process is about to be killed."""
        with self._lock:
            self._web_faults.append(time.monotonic())

    @property
    def num_ended(self) -> int:
        with self._lock:
            return sum(self.requests.values())

    def note_problem(self, text: str) -> None:
        with self._lock:
            self._note_problem(text)

    def note_cut(self, what: str) -> None:
        with self._lock:
            self._check_cut(what)

    def note_resume(self) -> None:
        with self._lock:
            self.num_resumed += 1

    @property
    def open_requests(self) -> list[str]:
        with self._lock:
            return list(self._open.values())

    def _check_cut(self, what: str) -> None:
        """Only the death of a web process may break a connection."""
        if not self._web_faults or time.monotonic() - self._web_faults[-1] > _WEB_DOWN_S:
            self._note_problem(f"{what}: the connection broke though no web process had died")

    def _note_problem(self, text: str) -> None:
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(text)
