"""The publisher's buffer: what wakes its taker, and what happens to lists that nobody takes."""

import sys
import threading
from collections.abc import Iterator
from itertools import count

import pytest

from shared.wire.events import Delta, Finished, Timings, Usage
from tests.support.jobs import completion_job
from worker.replica.attempt import Attempt, AttemptEvent, JobEnded
from worker.replica.event_builder import events_of
from worker.replica.publish_buffer import PublishBuffer
from worker.sequence import StepResult

_LONG_S = 600.0
"""Of a pause that only something urgent can end."""


def _attempt(job_id: str) -> Attempt:
    return Attempt(completion_job(id=job_id), 0, [])


def _tokens(attempt: Attempt, *tokens: int) -> list[AttemptEvent]:
    return [(attempt, StepResult((attempt.id, 0), f" {token}", [token])) for token in tokens]


def _end(attempt: Attempt) -> AttemptEvent:
    return attempt, JobEnded(Usage(1, 2), Timings(0, 0, 0))


def _found(lists: list[list[AttemptEvent] | None]) -> list[int]:
    """The tokens in the lists."""
    items = [item for events in lists for _, item in events or ()]
    return [token for item in items if isinstance(item, StepResult) for token in item.token_ids]


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_what_nobody_takes_is_joined_and_loses_nothing() -> None:
    buffer, attempts, num_steps = PublishBuffer(), [_attempt("a"), _attempt("b")], 5000
    for step in range(num_steps):
        buffer.put([event for attempt in attempts for event in _tokens(attempt, step)])
    buffer.put([_end(attempt) for attempt in attempts])
    buffer.put(None)
    lists = buffer.take(10**9)
    assert len(lists) < 500, "however many steps there were"
    assert lists[-1] is None and buffer.empty()
    events = events_of([event for events in lists for event in events or ()])
    text = "".join(f" {step}" for step in range(num_steps))
    deltas = [event for _, event in events if isinstance(event, Delta)]
    assert [delta.text for delta in deltas] == [text, text]
    assert [delta.token_ids for delta in deltas] == [list(range(num_steps))] * 2
    assert [type(event) for _, event in events[-2:]] == [Finished, Finished]


def test_the_end_stays_the_last_when_lists_are_joined() -> None:
    buffer, attempt = PublishBuffer(), _attempt("a")
    buffer.put(None)
    for token in range(300):
        buffer.put(_tokens(attempt, token))
    lists = buffer.take(10**9)
    assert _found(lists) == list(range(300))
    assert None in lists


def test_a_pause_ends_with_the_first_urgent_list() -> None:
    buffer, attempt = PublishBuffer(), _attempt("a")

    def write() -> None:
        for token in range(3):
            buffer.put(_tokens(attempt, token), is_urgent=False)
        buffer.put(_tokens(attempt, 3))

    writer = threading.Thread(target=write)
    writer.start()
    assert _found(buffer.take(100, _LONG_S)) == [0, 1, 2, 3]
    writer.join()


def test_without_a_pause_every_list_is_taken_at_once() -> None:
    buffer, attempt = PublishBuffer(), _attempt("a")
    writer = threading.Thread(target=lambda: buffer.put(_tokens(attempt, 1), is_urgent=False))
    writer.start()
    assert _found(buffer.take(100)) == [1]
    writer.join()


def test_what_a_full_round_leaves_does_not_wait_for_the_pause() -> None:
    buffer, attempt = PublishBuffer(), _attempt("a")
    for token in (0, 2, 4):
        buffer.put(_tokens(attempt, token, token + 1))
    assert _found(buffer.take(3)) == [0, 1, 2, 3]
    assert _found(buffer.take(3, _LONG_S)) == [4, 5]


@pytest.mark.usefixtures("hurried")
def test_no_list_is_left_behind_while_the_taker_falls_asleep() -> None:
    """The writer waits for each token: one that wakes nobody stops the test."""
    buffer, attempt, taken = PublishBuffer(), _attempt("a"), threading.Semaphore(0)
    num_tokens, found = 3000, list[int]()

    def write() -> None:
        for token in range(num_tokens):
            buffer.put(_tokens(attempt, token), is_urgent=False)
            assert taken.acquire(timeout=60)

    writer = threading.Thread(target=write)
    writer.start()
    while len(found) < num_tokens:
        found += _found(buffer.take(100))
        taken.release()
    writer.join()
    assert found == list(range(num_tokens))


@pytest.mark.usefixtures("hurried")
def test_lists_keep_their_order_while_they_are_joined_and_taken() -> None:
    buffer, attempt, num_tokens, found = PublishBuffer(), _attempt("a"), 20_000, list[int]()

    def write() -> None:
        for token in range(num_tokens):
            buffer.put(_tokens(attempt, token), is_urgent=False)
        buffer.put(None)

    writer = threading.Thread(target=write)
    writer.start()
    for _ in count():
        lists = buffer.take(100, 1e-3)
        found += _found(lists)
        if None in lists:
            break
    writer.join()
    assert found == list(range(num_tokens))
