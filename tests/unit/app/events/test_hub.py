"""The hub against a real Redis: routing, strays, and what a broken connection costs.

The hub's connections use gevent's sockets, as all do in a web process.
"""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
import redis
from gevent.event import Event as GeventEvent

from app.errors import ClientGone
from app.events.hub import Hub
from shared import names
from shared.errors import GoingAway
from shared.wire import codec
from shared.wire.events import (
    Delta,
    Event,
    Failed,
    Finished,
    PrefillProgress,
    Started,
    Timings,
    Usage,
)
from tests.support import gevent_redis

_STARTED = Started(0, 0, 3)
_DELTA = Delta(1, 0, 0, "a", [1])
_WAIT_S = 60.0


class _Running:
    """A hub that listens, and its Redis."""

    def __init__(self, client: "redis.Redis") -> None:
        self.client = client
        self.hub = Hub(client)
        self.strays: list[str] = []
        self.hub.on_stray = self.strays.append
        self._probes = (f"probe-{number}" for number in itertools.count())

    def publish(self, *events: tuple[str, Event], published_at: float = 0.0) -> None:
        """One message of a replica."""
        encoded = [(job_id, codec.encode_event(event)) for job_id, event in events]
        payload = codec.encode_hub_message(encoded, published_at)
        assert self.client.publish(self.hub.channel, payload) == 1, "the hub listens"

    def settle(self) -> None:
        """Wait until all that was published has been handed on."""
        probe = self.hub.open(next(self._probes))
        self.publish((probe.job_id, _STARTED))
        assert probe.read(_WAIT_S) == [_STARTED]
        self.hub.release(probe)
        gevent.sleep(0)  # what was spawned runs

    def log(self, job_id: str, *events: Event) -> None:
        self.client.rpush(names.log_key(job_id), *map(codec.encode_event, events))

    def cut(self) -> None:
        assert self.client.client_kill_filter(_type="pubsub") == 1


@pytest.fixture
def running(redis_socket: str) -> Iterator[_Running]:
    found = _Running(gevent_redis.client(redis_socket))
    found.hub.start()
    yield found
    assert found.hub._greenlet is not None
    found.hub._greenlet.kill()
    found.client.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


# -- routing ---------------------------------------------------------------------------------


def test_a_hub_that_has_started_is_connected(redis_socket: str, running: _Running) -> None:
    assert running.hub.is_connected
    assert not Hub(gevent_redis.client(redis_socket)).is_connected


def test_each_event_goes_to_the_stream_of_its_job(running: _Running) -> None:
    one, other = running.hub.open("one"), running.hub.open("other")
    running.publish(("one", _STARTED), ("other", Started(0, 0, 9)), ("one", _DELTA))
    assert one.read(_WAIT_S) == [_STARTED, _DELTA]
    assert other.read(_WAIT_S) == [Started(0, 0, 9)]


def test_the_time_of_publishing_comes_along(running: _Running) -> None:
    stream = running.hub.open("j")
    running.publish(("j", _STARTED), published_at=12.5)
    stream.read(_WAIT_S)
    assert stream.published_at == 12.5


def test_all_readers_of_a_job_get_its_events_until_they_leave(running: _Running) -> None:
    hub = running.hub
    first, second = hub.open("j"), hub.open("j")
    running.publish(("j", _STARTED))
    assert first.read(_WAIT_S) == second.read(_WAIT_S) == [_STARTED]
    assert hub.release(first), "the process has another one"
    running.publish(("j", _DELTA))
    assert second.read(_WAIT_S) == [_DELTA]
    assert first.read(0) == []
    assert not hub.release(second)


def test_to_release_a_stream_twice_takes_no_other_away(running: _Running) -> None:
    hub = running.hub
    first, second = hub.open("j"), hub.open("j")
    assert hub.release(first)
    assert hub.release(first)
    running.publish(("j", _STARTED))
    assert second.read(_WAIT_S) == [_STARTED]
    assert not hub.release(second)
    assert not hub.release(second)
    assert hub.num_streams == 0


def test_what_cannot_be_decoded_is_passed_over(
    running: _Running, caplog: pytest.LogCaptureFixture
) -> None:
    stream = running.hub.open("j")
    running.client.publish(running.hub.channel, b"\xc1")
    running.publish(("j", _STARTED))
    assert stream.read(_WAIT_S) == [_STARTED]
    assert "undecodable message on the hub channel" in caplog.text
    assert running.hub.is_connected


def test_all_streams_are_closed_with_an_error(running: _Running) -> None:
    streams = [running.hub.open(job_id) for job_id in ("one", "one", "other")]
    running.hub.close_streams(GoingAway("bye"))
    for stream in streams:
        with pytest.raises(GoingAway):
            stream.read(0)


def test_a_stream_is_closed_alone(running: _Running) -> None:
    one, other = running.hub.open("j"), running.hub.open("j")
    one.close()
    with pytest.raises(ClientGone):
        one.read(0)
    assert other.read(0) == []


# -- strays ----------------------------------------------------------------------------------


def test_a_job_that_nobody_reads_is_a_stray_every_two_seconds(
    running: _Running, clock: list[float]
) -> None:
    for after_s, num_strays in ((0.0, 1), (2.0, 1), (0.1, 2), (0.1, 2)):
        clock[0] += after_s
        running.publish(("j", _STARTED), ("j", _DELTA))
        running.settle()
        assert running.strays == ["j"] * num_strays


def test_a_job_that_was_just_released_may_still_send_a_little(
    running: _Running, clock: list[float]
) -> None:
    running.hub.release(running.hub.open("j"))
    for after_s, strays in ((0.0, []), (2.0, []), (0.1, ["j"])):
        clock[0] += after_s
        running.publish(("j", _DELTA))
        running.settle()
        assert running.strays == strays


@pytest.mark.parametrize(
    "last", [Finished(0, 0, Usage(1, 1), Timings(0, 0, 0)), Failed(0, 0, 500, None, "x")]
)
def test_the_end_of_a_job_that_nobody_reads_is_no_stray(running: _Running, last: Event) -> None:
    running.publish(("j", last))
    running.settle()
    assert running.strays == []


def test_released_jobs_are_not_remembered_for_ever(clock: list[float]) -> None:
    hub = Hub(redis.Redis())
    for number in range(10_000):
        hub.release(hub.open(f"{number}"))
    clock[0] += 2.1
    hub.release(hub.open("last"))
    assert hub._released_at == {"last": clock[0]}


# -- the connection --------------------------------------------------------------------------


def test_after_a_cut_every_stream_reads_what_it_missed(running: _Running) -> None:
    one, other = running.hub.open("one"), running.hub.open("other")
    running.publish(("one", _STARTED))
    assert one.read(_WAIT_S) == [_STARTED]
    running.cut()
    # Published in the gap: only the logs have it.
    running.log("one", _STARTED, PrefillProgress(1, 0, 1, 3))
    running.log("other", _STARTED)
    assert one.read(_WAIT_S) == [PrefillProgress(1, 0, 1, 3)]
    assert other.read(_WAIT_S) == [_STARTED]
    running.publish(("one", PrefillProgress(2, 0, 3, 3)))
    assert one.read(_WAIT_S) == [PrefillProgress(2, 0, 3, 3)]


def test_a_hub_tries_again_until_it_is_connected(
    running: _Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, good, seen = running.hub.open("j"), running.client.pubsub, []

    def refuse_twice() -> Any:
        seen.append(running.hub.is_connected)
        if len(seen) < 3:
            raise redis.ConnectionError("refused")
        return good()

    monkeypatch.setattr(running.client, "pubsub", refuse_twice)
    running.log("j", _STARTED)
    running.cut()
    assert stream.read(_WAIT_S) == [_STARTED]
    assert seen == [False, False, False]
    assert running.hub.is_connected


def test_a_request_waits_until_the_hub_is_connected_again(
    running: _Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, is_tried, is_up = running.client.pubsub, GeventEvent(), GeventEvent()

    def block() -> Any:
        is_tried.set()
        assert is_up.wait(_WAIT_S)
        return good()

    monkeypatch.setattr(running.client, "pubsub", block)
    running.cut()
    assert is_tried.wait(_WAIT_S)
    running.hub.wait_until_connected(0)
    assert not running.hub.is_connected, "it waits no longer than it is asked to"
    waiter = gevent.spawn(running.hub.wait_until_connected, _WAIT_S)
    is_up.set()
    waiter.get(timeout=_WAIT_S)
    assert running.hub.is_connected


class _Mute:
    """A server that takes the subscription and does not confirm it."""

    def pubsub(self) -> "_Mute":
        return self

    def subscribe(self, _channel: str) -> None:
        pass

    def get_message(self, timeout: float) -> None:
        assert timeout > 0


def test_a_subscription_that_is_not_confirmed_is_an_error() -> None:
    hub = Hub(_Mute())  # type: ignore[arg-type]
    with pytest.raises(redis.TimeoutError):
        hub.start()
    assert not hub.is_connected
