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

    def __init__(self) -> None:
        self.num_reads = 0

    def lrange(self, _key: str, start: int, _end: int) -> list[bytes]:
        self.num_reads += 1
        return [messages.encode_event(event) for event in _LOG[start:]]


def _stream() -> tuple[JobStream, _Log]:
    log = _Log()
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


def test_a_lost_last_event_is_found_by_a_reader_that_asks() -> None:
    stream, _ = _stream()
    stream.push(_LOG[0])
    assert _texts(stream.read(0)) == "a"
    assert stream.read(0) == []
    assert _texts(stream.repair()) == "bcx"
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
