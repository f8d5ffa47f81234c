"""A stream's answer whose reading ends before the first byte."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask, g

from app.api import disconnect, sse_response
from app.jobs.dispatcher import Subscription
from tests.support.relay_bench import Clock, RelayBench


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[RelayBench]:
    """In the context of a request."""
    bench = RelayBench(Clock())
    monkeypatch.setattr(disconnect, "Relay", lambda *_: bench.relay())
    monkeypatch.setattr(disconnect, "services", lambda: SimpleNamespace(relay=None))
    with Flask("test").test_request_context("/"):
        g.record = bench.record
        yield bench


def test_a_client_that_is_gone_before_the_first_byte_is_recorded_as_gone(bench: RelayBench) -> None:
    bench.stream.close()
    response = sse_response.respond(Subscription(bench.job, bench.stream))
    assert (response.status_code, bench.record.outcome) == (499, "client_gone")
    with pytest.raises(ConnectionResetError):
        next(response.iter_encoded())
    assert bench.border.released


@pytest.mark.parametrize(
    ("place", "name"), [(sse_response, "ChunkEncoder"), (disconnect, "DisconnectWatcher")]
)
def test_an_error_before_the_first_byte_leaves_no_subscription(
    bench: RelayBench, monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError(name)

    monkeypatch.setattr(place, name, fails)
    with pytest.raises(RuntimeError, match=name):
        sse_response.respond(Subscription(bench.job, bench.stream))
    assert bench.border.released
    assert not bench.border.watched
