"""The reader of a job: order, holes, doubles, joining."""

import pytest
import redis

from app.job_stream import ClientGone, JobStream
from shared import messages
from shared.messages import Delta, Event, Finished, FinishReason, Timings, Usage

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
        return [messages.encode_event(event) for event in self.events[start : end + 1]]


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
