"""The reader of a job: order, holes, doubles, joining."""

import time

import gevent
import pytest
import redis

from app.errors import ClientGone
from app.events.job_stream import JobStream, raise_failure
from shared import errors
from shared.wire import codec
from shared.wire.events import (
    Delta,
    Event,
    Failed,
    Filtered,
    FilterMatch,
    Finished,
    FinishReason,
    Timings,
    ToolCallDelta,
    Usage,
    join,
)

_LOG: list[Event] = [
    Delta(0, 0, 0, "a", [1]),
    Delta(1, 0, 0, "b", [2]),
    Delta(2, 0, 1, "x", [3], FinishReason.STOP),
    Delta(3, 0, 0, "c", [4], FinishReason.STOP),
    Finished(4, 0, Usage(1, 4), Timings(0, 0, 0)),
]


class _Log:
    """The job's log in Redis, as much as a stream uses of it."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.num_reads = 0

    def lrange(self, _key: str, start: int, end: int) -> list[bytes]:
        self.num_reads += 1
        return [codec.encode_event(event) for event in self.events[start : end + 1]]


def _stream(events: list[Event] = _LOG) -> tuple[JobStream, _Log]:
    log = _Log(events)
    return JobStream("j", log), log  # type: ignore[arg-type]


def _texts(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def test_the_deltas_of_each_choice_are_joined() -> None:
    stream, log = _stream()
    for event in _LOG:
        stream.push(event)
    events = stream.read(0)
    assert events == [
        Delta(3, 0, 0, "abc", [1, 2, 4], FinishReason.STOP),
        Delta(2, 0, 1, "x", [3], FinishReason.STOP),
        _LOG[4],
    ]
    assert stream.is_ended
    assert log.num_reads == 0


@pytest.mark.parametrize("lost", range(4))
def test_a_hole_is_repaired_from_the_log(lost: int) -> None:
    stream, log = _stream()
    for event in _LOG[:lost] + _LOG[lost + 1 :]:
        stream.push(event)
    assert _texts(stream.read(0)) == "abcx"
    assert stream.is_ended
    assert log.num_reads == 1


def test_a_lost_last_event_is_found_in_the_log() -> None:
    stream, _ = _stream()
    stream.push(_LOG[0])
    assert _texts(stream.read(0)) == "a"
    assert stream.read(0) == []
    stream.push_repair()
    assert _texts(stream.read(0)) == "bcx"
    assert stream.is_ended


def test_doubles_are_dropped() -> None:
    stream, _ = _stream()
    for event in (_LOG[0], _LOG[1], _LOG[0], _LOG[1]):
        stream.push(event)
    assert _texts(stream.read(0)) == "ab"


def test_a_failed_repair_loses_nothing() -> None:
    stream, log = _stream()
    good = log.lrange
    log.lrange = lambda *_: (_ for _ in ()).throw(redis.ConnectionError("cut"))  # type: ignore[method-assign]
    stream.push(_LOG[0])
    stream.push(_LOG[2])
    assert _texts(stream.read(0)) == "a", "what was there is shown first"
    with pytest.raises(redis.ConnectionError):
        stream.read(0)
    log.lrange = good  # type: ignore[method-assign]
    assert _texts(stream.read(0)) == "bcx"


def test_closing_wakes_the_reader() -> None:
    stream, _ = _stream()
    stream.close()
    with pytest.raises(ClientGone):
        stream.read(5)


def test_being_woken_gives_nothing() -> None:
    stream, log = _stream()
    stream.wake()
    assert stream.read(5) == []
    assert log.num_reads == 0


_LONG: list[Event] = [
    *(Delta(seq, 0, 0, f" {seq}", [seq]) for seq in range(100_000)),
    Finished(100_000, 0, Usage(1, 100_000), Timings(0, 0, 0)),
]


def test_what_is_pushed_while_nobody_reads_is_bounded_and_read_in_pieces() -> None:
    """However long the reader was away: it gets everything, once and in order."""
    stream, _ = _stream(_LONG)
    for event in _LONG:
        stream.push(event)
    assert stream._queue.qsize() < 1000
    texts: list[str] = []
    while not stream.is_ended:
        events = stream.read(0)
        deltas = [event for event in events if isinstance(event, Delta)]
        assert sum(len(delta.token_ids) for delta in deltas) < 2000, "of one piece"
        texts += [delta.text for delta in deltas]
    assert "".join(texts) == "".join(f" {seq}" for seq in range(100_000))


def test_a_reader_that_comes_back_meanwhile_misses_nothing() -> None:
    stream, _ = _stream(_LONG)
    texts = []
    for seq, event in enumerate(_LONG):
        stream.push(event)
        if seq % 700 == 0:
            texts += [_texts(stream.read(0))]
    while not stream.is_ended:
        texts.append(_texts(stream.read(0)))
    assert "".join(texts) == "".join(f" {seq}" for seq in range(100_000))


# -- joining one that runs, skipping, failing -------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_follower_reads_the_log_until_events_are_pushed(clock: list[float]) -> None:
    stream, log = _stream(_LOG[:2])
    stream.follow()
    assert _texts(stream.read(60)) == "ab"
    log.events = _LOG[:3]
    assert _texts(stream.read(60)) == "x", "its replica does not know of this reader yet"
    stream.push(_LOG[3])
    log.num_reads = 0
    assert _texts(stream.read(60)) == "c"
    assert stream.read(0) == []
    assert log.num_reads == 0


def test_a_follower_of_a_silent_job_stops_reading_its_log(clock: list[float]) -> None:
    stream, log = _stream(_LOG[:1])
    stream.follow()
    clock[0] += 5.0
    assert _texts(stream.read(0)) == "a", "it is read once in any case"
    log.num_reads = 0
    assert stream.read(0) == []
    assert log.num_reads == 0


def test_a_follower_that_finds_the_end_in_the_log_is_done(clock: list[float]) -> None:
    stream, _ = _stream()
    stream.follow()
    assert _texts(stream.read(0)) == "abcx"
    assert stream.is_ended


def test_skipped_events_are_not_read_again() -> None:
    stream, _ = _stream()
    assert stream.skip(2) == _LOG[:2]
    assert (stream.next_seq, stream.is_ended) == (2, False)
    for event in _LOG:
        stream.push(event)
    assert _texts(stream.read(0)) == "xc"


def test_to_skip_more_than_there_is_ends_with_the_last_event() -> None:
    stream, _ = _stream()
    assert stream.skip(100) == _LOG
    assert stream.is_ended


def test_the_time_of_publishing_is_that_of_the_first_event_read() -> None:
    stream, _ = _stream()
    stream.push(_LOG[0], 5.0)
    stream.push(_LOG[1], 6.0)
    stream.read(0)
    assert stream.published_at == 5.0
    stream.push_repair()
    stream.read(0)
    assert stream.published_at == 0.0, "what comes from the log was published some time ago"


def test_a_stream_is_closed_with_the_error_given() -> None:
    stream, _ = _stream()
    stream.close(errors.GoingAway("bye"))
    with pytest.raises(errors.GoingAway, match="bye"):
        stream.read(5)


def test_a_failed_job_raises_its_error_and_others_nothing() -> None:
    failed = Failed(1, 0, 400, errors.ContextLengthExceeded.code, "too long", "messages")
    with pytest.raises(errors.ContextLengthExceeded, match="too long") as caught:
        raise_failure([_LOG[0], failed])
    assert caught.value.param == "messages"
    raise_failure([])
    raise_failure(_LOG)


def test_the_pieces_of_tool_calls_and_matches_are_joined() -> None:
    first, second = FilterMatch("r", "mask", 0, 1), FilterMatch("r", "mask", 4, 5)
    name, middle = ToolCallDelta(0, "call", "get"), ToolCallDelta(0, arguments="{")
    last, next_one = ToolCallDelta(0, arguments="}"), ToolCallDelta(1, "other", "set")
    (joined,) = join([
        Delta(0, 0, 0, "", [1], reasoning="so", tool_calls=[name, middle],
              filtered=Filtered(2, [first])),
        Delta(1, 0, 0, "a", [2], tool_calls=[last, next_one]),
        Delta(2, 0, 0, "b", [3], reasoning=" be", filtered=Filtered(9, [second])),
    ])  # fmt: skip
    assert joined == Delta(
        2, 0, 0, "ab", [1, 2, 3], reasoning="so be",
        tool_calls=[ToolCallDelta(0, "call", "get", "{}"), next_one],
        filtered=Filtered(9, [first, second]),
    )  # fmt: skip


# -- how long a read waits -------------------------------------------------------------------


def test_a_read_ends_in_its_time_also_after_one_that_might_have_waited_longer() -> None:
    stream, _ = _stream()
    gevent.spawn(stream.push, _LOG[0])
    assert stream.read(3600) == _LOG[:1]
    assert stream.read(0.01) == []


def test_the_time_of_an_earlier_read_does_not_end_a_later_one() -> None:
    stream, _ = _stream()
    gevent.spawn(stream.push, _LOG[0])
    assert stream.read(0.2) == _LOG[:1]
    gevent.spawn_later(0.4, stream.push, _LOG[1])
    assert stream.read(3600) == _LOG[1:2]


def test_reads_that_wait_share_a_timer() -> None:
    stream, _ = _stream()
    timers = set()
    for event in _LOG[:3]:
        gevent.spawn(stream.push, event)
        assert stream.read(3600) == [event]
        timers.add(stream._timer)
    assert len(timers) == 1
    stream.stop_timer()
    assert stream._timer is None
