"""The mixed load: threads that ask until the time is over, each request until it has ended."""

import contextlib
import random
import threading
import time

from simple_websocket import ConnectionClosed

from tests.chaos import garbage, http_client, ws_client
from tests.chaos.asks import Answer, Ask, Outcome, draw, judge
from tests.chaos.ledger import Ledger
from tests.chaos.pauses import Pauses
from tests.conftest import Service

_KINDS = {
    "long streams": 4,
    "streams": 8,
    "whole": 3,
    "websocket": 3,
    "closes": 3,
    "leaves batch jobs": 2,
    "cancels": 2,
    "reads slowly": 1,
    "garbage": 2,
}
"""Kind → weight."""
_PATIENCE_S = 120.0
"""A request that has not ended after this, with all its tries, is given up: a problem."""
_BROKEN = (*http_client.BROKEN, ConnectionClosed)


class _Left(Exception):
    """The client has closed its connection on purpose."""


class Load:
    """So many clients at the same time, from `start` to `stop`."""

    def __init__(self, service: Service, ledger: Ledger, num_clients: int, seed: int) -> None:
        self._service = service
        self._ledger = ledger
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(random.Random(f"{seed}/{i}"),), daemon=True)
            for i in range(num_clients)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let the requests under way end. What is left then is in the ledger's open ones."""
        self._is_over.set()
        deadline = time.monotonic() + 2 * _PATIENCE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _client(self, rng: random.Random) -> None:
        while not self._is_over.is_set():
            kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
            if kind == "garbage":
                self._send_garbage(rng)
            elif kind == "websocket":
                self._converse([draw(kind, rng) for _ in range(rng.randint(1, 3))], rng)
            else:
                self._request(draw(kind, rng), rng)
            self._is_over.wait(rng.random() * 0.3)

    def _request(self, ask: Ask, rng: random.Random) -> None:
        number = self._ledger.begin(ask.kind, str(ask))
        deadline = time.monotonic() + _PATIENCE_S
        answer = Answer()
        while True:
            outcome = self._try(ask, answer, rng)
            if self._is_final(outcome, deadline):
                self._ledger.end(number, ask.kind, outcome, answer.pauses)
                return
            if outcome is not Outcome.CUT or answer.last_event_id is None:
                answer = Answer(pauses=answer.pauses)
            time.sleep(0.1 + rng.random() * 0.4)

    def _try(self, ask: Ask, answer: Answer, rng: random.Random) -> Outcome:
        """Ask, or go on with an answer that was cut."""
        try:
            if ask.kind == "whole":
                http_client.whole(self._service, ask, answer)
            elif answer.last_event_id is not None:
                self._ledger.note_resume()
                http_client.resume(self._service, answer)
            else:
                self._stream(ask, answer, rng)
        except TimeoutError:
            answer.is_hung = True
        except _BROKEN:
            pass  # as is an answer that ends too early: it was cut
        return self._judge(ask, answer)

    def _stream(self, ask: Ask, answer: Answer, rng: random.Random) -> None:
        request_id = f"chaos-{rng.getrandbits(64):x}"
        is_batch = ask.kind == "leaves batch jobs"  # some before they have begun
        turn = rng.randint(0 if is_batch else 1, 8)

        def on_event(num_events: int) -> None:
            if (is_batch or ask.kind == "closes") and num_events == turn:
                answer.is_left = True
                raise _Left
            if ask.kind == "cancels" and num_events == turn:
                answer.was_cancelled = True
                http_client.cancel(self._service, request_id)
            if ask.kind == "reads slowly":
                time.sleep(rng.random() * 0.1)

        with contextlib.suppress(_Left):
            headers = {"x-request-id": request_id}
            http_client.stream(self._service, ask, answer, on_event, **headers)

    def _converse(self, asks: list[Ask], rng: random.Random) -> None:
        numbers = [self._ledger.begin(ask.kind, str(ask)) for ask in asks]
        left = dict(zip(numbers, asks, strict=True))
        pauses = {number: Pauses() for number in numbers}
        deadline = time.monotonic() + _PATIENCE_S
        while left:
            answers = [Answer(pauses=pauses[number]) for number in left]
            try:
                ws_client.converse(self._service, list(left.values()), answers, rng)
            except TimeoutError:
                for answer in answers:
                    answer.is_hung = not answer.is_done
            except _BROKEN:
                pass
            for (number, ask), answer in zip(list(left.items()), answers, strict=True):
                outcome = self._judge(ask, answer)
                if self._is_final(outcome, deadline):
                    self._ledger.end(number, ask.kind, outcome, answer.pauses)
                    del left[number]
            time.sleep(0.1 + rng.random() * 0.4)

    def _send_garbage(self, rng: random.Random) -> None:
        number = self._ledger.begin("garbage", "")
        outcome = Outcome.REFUSED
        try:
            problem = garbage.send(self._service, rng)
        except TimeoutError:
            problem = "garbage got no answer for a minute"
        except _BROKEN:
            problem, outcome = None, Outcome.CUT
            self._ledger.note_cut("garbage")
        if problem is not None:
            outcome = Outcome.WRONG
            self._ledger.note_problem(problem)
        self._ledger.end(number, "garbage", outcome)

    def _judge(self, ask: Ask, answer: Answer) -> Outcome:
        outcome, detail = judge(ask, answer)
        self._ledger.note_try(ask, outcome, detail)
        return outcome

    def _is_final(self, outcome: Outcome, deadline: float) -> bool:
        """A request that was refused or cut is sent again, as a client with retries does."""
        return outcome not in (Outcome.REFUSED, Outcome.CUT) or time.monotonic() > deadline
