import logging
import time
from collections.abc import Callable

import pytest
import redis

from shared.clock import Clock


class _Server:
    """Redis as the clock sees it: a time, and how long its round trips take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at, self.host_at, self.monotonic_at, self.trip_s = 1000.0, 1000.0, 50.0, 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.monotonic_at)
        monkeypatch.setattr(time, "time", lambda: self.host_at)

    def time(self) -> tuple[int, int]:
        self.pass_(self.trip_s / 2)
        read = divmod(round(self.at * 1e6), 1_000_000)
        self.pass_(self.trip_s / 2)
        return read

    def pass_(self, seconds: float) -> None:
        self.at += seconds
        self.host_at += seconds
        self.monotonic_at += seconds


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> _Server:
    return _Server(monkeypatch)


@pytest.fixture
def clock(server: _Server) -> Clock:
    clock = Clock()
    clock.measure(server)  # type: ignore[arg-type]
    return clock


def test_before_the_first_measurement_it_is_the_clock_of_the_host() -> None:
    assert Clock().now() == pytest.approx(time.time(), abs=1)
    assert Clock().host_ahead_s == pytest.approx(0.0, abs=0.1)


def test_it_is_the_clock_of_a_real_redis(redis_socket: str) -> None:
    clock, client = Clock(), redis.Redis(unix_socket_path=redis_socket)
    clock.measure(client)
    seconds, micros = client.time()
    assert clock.now() == pytest.approx(seconds + micros / 1e6, abs=1)


@pytest.mark.parametrize("ahead_s", [40.0, 700.0, -3600.0])
def test_the_clock_of_the_host_does_not_matter(server: _Server, ahead_s: float) -> None:
    server.host_at += ahead_s
    clock = Clock()
    clock.measure(server)  # type: ignore[arg-type]
    assert clock.now() == pytest.approx(1000.0)
    assert clock.host_ahead_s == pytest.approx(ahead_s)


@pytest.mark.parametrize("step_s", [700.0, -700.0])
def test_a_step_of_the_clock_of_the_host_changes_nothing(
    server: _Server, clock: Clock, step_s: float
) -> None:
    made_at = clock.now()
    server.host_at += step_s
    server.pass_(3.0)
    assert clock.now() == pytest.approx(1003.0)
    clock.measure(server)  # type: ignore[arg-type]
    assert clock.age_s(made_at) == pytest.approx(3.0)


def test_a_slow_round_trip_does_not_make_it_worse(server: _Server, clock: Clock) -> None:
    before = clock.now()
    server.trip_s = 4.0
    clock.measure(server)  # type: ignore[arg-type]
    assert clock.now() - before == pytest.approx(4.0)


def test_a_slow_first_round_trip_is_corrected_by_later_ones(server: _Server) -> None:
    clock, slow = Clock(), server.time

    def slow_to_answer() -> tuple[int, int]:
        read = slow()
        server.pass_(6.0)
        return read

    server.time = slow_to_answer  # type: ignore[method-assign]
    clock.measure(server)  # type: ignore[arg-type]
    assert clock.now() == pytest.approx(server.at - 3.0)
    made_at = server.at - 10
    server.time = slow  # type: ignore[method-assign]
    clock.measure(server)  # type: ignore[arg-type]
    assert clock.now() == pytest.approx(server.at)
    assert clock.age_s(made_at) == pytest.approx(10.0), "no step of Redis' clock"


def test_the_drift_of_the_monotonic_clock_is_followed(server: _Server, clock: Clock) -> None:
    for _ in range(1000):
        server.pass_(0.5)
        server.at += 0.005
        clock.measure(server)  # type: ignore[arg-type]
    assert clock.now() == pytest.approx(server.at)
    assert clock.age_s(1000.0) == pytest.approx(505.0)


def test_a_step_forward_of_redis_makes_nothing_older(server: _Server, clock: Clock) -> None:
    made_at = clock.now()
    server.pass_(3.0)
    server.at += 700.0
    clock.measure(server)  # type: ignore[arg-type]
    assert clock.now() == pytest.approx(1703.0)
    assert clock.age_s(made_at) == pytest.approx(3.0)
    assert not clock.is_past(made_at + 600, made_at=made_at)
    assert clock.age_s(made_at + 3.4) == 0.0, "of a process that has not seen the step yet"
    later_at = clock.now()
    server.pass_(5.0)
    assert clock.age_s(later_at) == pytest.approx(5.0)
    assert clock.age_s(made_at) == pytest.approx(8.0)


def test_a_step_back_of_redis_gives_no_negative_age(server: _Server, clock: Clock) -> None:
    made_at = clock.now()
    server.at -= 700.0
    clock.measure(server)  # type: ignore[arg-type]
    assert clock.age_s(made_at) == 0.0
    assert not clock.is_past(made_at + 1, made_at=made_at)


def test_what_is_past_its_deadline(server: _Server, clock: Clock) -> None:
    made_at = clock.now()
    server.pass_(9.0)
    assert not clock.is_past(made_at + 10, made_at=made_at)
    server.pass_(2.0)
    assert clock.is_past(made_at + 10, made_at=made_at)


def test_a_skew_is_logged_once(server: _Server, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    measure: Callable[[], None] = lambda: clock.measure(server)  # type: ignore[arg-type] # noqa: E731
    measure()
    assert caplog.records == []
    server.host_at += 40
    measure()
    measure()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "+40.0 s" in record.getMessage()
