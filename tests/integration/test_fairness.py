"""Who is next: keys take turns, classes have their order, and nobody waits for ever."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from simple_websocket import Client

from tests.conftest import Service, running_service, wait_for
from tests.support.admin_client import Completion
from tests.support.paused_replica import paused
from tests.support.plain_client import Senders, complete, order_of_ends

_MODEL = "counter-small"
_HELD = 3
"""Requests that a replica of two slots may have taken from the queue before it stood still."""


@pytest.fixture(scope="module")
def fair_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("fair")
    # A replica that stands still is not to be missed.
    environ = {"LLMIS_REPLICA_WAIT_S": "60", "LLMIS_WEB_WORKERS": "2"}
    with running_service(data_dir, extra="lower_class_turn_s = 1", environ=environ) as running:
        yield running


@pytest.fixture
def senders(fair_service: Service) -> Iterator[Senders]:
    made = Senders(fair_service)
    yield made
    made.close()


def _unique(name: str) -> str:
    return f"{name}-{time.monotonic_ns()}"


def _ends(service: Service, prefix: str, number: int) -> list[str]:
    """Names of the requests in the order of their ends."""

    def found() -> list[str]:
        ended = order_of_ends(service, _MODEL, prefix)
        return ended if len(ended) == number else []

    ids: list[str] = wait_for(found, f"{number} requests end", 60)
    return [request_id.removeprefix(prefix) for request_id in ids]


def test_one_request_overtakes_a_hundred_of_another_key(
    fair_service: Service, senders: Senders
) -> None:
    prefix = _unique("overtakes")
    with paused(fair_service, _MODEL):
        many = [senders.send(f"{prefix}-a{i}", key="key-a") for i in range(100)]
        one = senders.send(f"{prefix}-b", key="key-b")
    answer = one.result(60)
    assert answer.status == 200
    # What the replica holds may be taken for lost, and queued again before all others.
    assert int(answer.headers["x-llmis-queue-position"]) <= 1 + _HELD
    assert all(request.result(60).status == 200 for request in many)
    last = many[-1].result().headers["x-llmis-queue-position"]
    assert 100 - _HELD - 1 <= int(last) <= 99 + _HELD
    assert _ends(fair_service, prefix, 101).index("-b") <= 2 * _HELD + 1


def test_keys_with_bursts_take_turns(fair_service: Service, senders: Senders) -> None:
    prefix = _unique("turns")
    with paused(fair_service, _MODEL):
        requests = [
            senders.send(f"{prefix}-{key}{i}", key=f"key-{key}") for key in "abc" for i in range(20)
        ]
    assert all(request.result(60).status == 200 for request in requests)
    ended = _ends(fair_service, prefix, 60)
    for third in (ended[:20], ended[20:40], ended[40:]):
        counts = [sum(name[1] == key for name in third) for key in "abc"]
        assert max(counts) - min(counts) <= _HELD + 1, counts


def test_classes_go_in_their_order(fair_service: Service, senders: Senders) -> None:
    """Sent in the reverse order; what the replica may hold before goes first."""
    prefix = _unique("classes")
    with paused(fair_service, _MODEL):
        requests = [senders.send(f"{prefix}-held{i}") for i in range(_HELD)]
        for priority in ("batch", "background", "interactive"):
            requests += [
                senders.send(f"{prefix}-{priority}-{i}", priority=priority) for i in range(8)
            ]
    assert all(request.result(60).status == 200 for request in requests)
    ended = [name.split("-")[1] for name in _ends(fair_service, prefix, _HELD + 24)]
    ended = [name for name in ended if not name.startswith("held")]
    middles = {name: sum(i for i, n in enumerate(ended) if n == name) for name in set(ended)}
    assert sorted(middles, key=middles.__getitem__) == ["interactive", "background", "batch"]


@pytest.mark.parametrize("priority", ["background", "batch"])
def test_no_class_starves(fair_service: Service, priority: str) -> None:
    """More interactive requests than there are slots, without a pause."""
    is_over = threading.Event()

    def press() -> None:
        while not is_over.is_set():
            complete(fair_service, key="busy", max_tokens=400)

    threads = [threading.Thread(target=press) for _ in range(24)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: fair_service.num_queued(_MODEL) > 10, "interactive requests wait")
        assert complete(fair_service, key="patient", priority=priority).status == 200
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def test_a_stream_is_told_its_place(fair_service: Service, senders: Senders) -> None:
    prefix = _unique("place")
    with paused(fair_service, _MODEL):
        for i in range(_HELD + 10):
            senders.send(f"{prefix}-{i}", key="before")
        waiting = Completion(fair_service, _MODEL, 3, priority="background")
        assert waiting.response.status == 200
        ahead = int(waiting.response.headers["x-llmis-queue-position"])
        assert ahead >= 10
        line = waiting.response.readline().decode()
        while not line.startswith(": queue position"):
            line = waiting.response.readline().decode()
        assert ahead <= int(line.removeprefix(": queue position ")) <= ahead + _HELD
    assert waiting.read().is_done
    assert waiting.text == " 6 7 8"


def test_a_websocket_is_told_its_place(fair_service: Service, senders: Senders) -> None:
    prefix = _unique("socket")
    body = {"model": _MODEL, "prompt": "5", "max_tokens": 2, "priority": "background"}
    socket = Client(f"ws://127.0.0.1:{fair_service.port}/v1/ws")
    try:
        with paused(fair_service, _MODEL):
            for i in range(_HELD + 5):
                senders.send(f"{prefix}-{i}", key="before")
            request = {"type": "request", "id": "a", "endpoint": "completions", "body": body}
            socket.send(json.dumps(request))
            frames = [_frame(socket), _frame(socket)]
            assert [frame["type"] for frame in frames] == ["accepted", "queued"]
            assert frames[1]["id"] == "a" and frames[1]["position"] >= 5
        while frames[-1]["type"] != "done":
            frames.append(_frame(socket))
    finally:
        socket.close()


def _frame(socket: Client) -> Any:
    payload = socket.receive(timeout=30)
    assert payload is not None
    return json.loads(payload)
