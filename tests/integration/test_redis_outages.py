"""Redis goes away for a moment, and for longer, while jobs run, wait and come in."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from shared import names
from tests.conftest import Service, wait_for
from tests.support.admin_client import Completion, load, readiness
from tests.support.counter_model import expected_text
from tests.support.paused_replica import slowed, stopped
from tests.support.sse_reader import Answer
from tests.support.threads import Client


def _cut_all_connections(service: Service, pid: int) -> None:
    """For a second and a half, everybody's, over and over."""
    client, ends_at = service.redis, time.monotonic() + 1.5
    while time.monotonic() < ends_at:
        for kind in ("normal", "pubsub"):
            client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        time.sleep(0.02)


def _kill(service: Service, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: service.pids("valkey-server") not in ([], [pid]), "Redis runs again")


def _freeze(service: Service, pid: int) -> None:
    with stopped(pid):
        time.sleep(1)


@pytest.mark.parametrize("fault", [_cut_all_connections, _kill, _freeze])
def test_a_short_outage_is_bridged(
    own_service: Service, fault: Callable[[Service, int], None]
) -> None:
    """Two slots: two streams run, six requests wait, and others come in all the time."""
    assert load(own_service, "pair", slots=2, context_length=4096)[0] == 200
    (server,), (replica,) = (own_service.pids(w) for w in ("valkey-server", " pair@"))
    breaker = threading.Thread(target=fault, args=(own_service, server))
    with slowed(replica):
        clients = [Client(own_service, "pair", 3000, start) for start in range(2)]
        clients += [Client(own_service, "pair", 300, start) for start in range(10, 16)]
        wait_for(lambda: clients[0].has_text, "it runs")
        breaker.start()
        while breaker.is_alive():
            clients.append(Client(own_service, "counter", 50, len(clients)))
            time.sleep(0.05)
        assert clients[0].is_alive(), "its stream has not ended"
    for client in clients:
        client.check()


def test_a_long_outage_is_an_error_and_then_over(own_service: Service) -> None:
    """The server stands still, which is worse than one that is gone: every call must time out."""
    assert load(own_service, "pair", slots=2, context_length=4096)[0] == 200
    others = {name: own_service.pids(name) for name in ("gunicorn", "worker.")}
    (pid,), (replica,) = (own_service.pids(w) for w in ("valkey-server", " pair@"))
    with slowed(replica):
        stream = Completion(own_service, "pair", 3000).read(1)
    with stopped(pid):
        refused = Completion(own_service, "counter", 5)
        assert refused.response.status == 503
        assert refused.response.headers["Retry-After"]
        assert refused.read().error["code"] == "queue_unavailable"
        assert stream.read().error["code"] == "queue_unavailable"
        assert not stream.is_done
        assert readiness(own_service)[0] == 503
    wait_for(lambda: readiness(own_service)[0] == 200, "it is ready again")
    assert Completion(own_service, "pair", 20).read().text == expected_text(5, 20)
    assert Completion(own_service, "counter", 20).read().text == expected_text(5, 20)
    assert {name: own_service.pids(name) for name in others} == others, own_service.log("agent")


def test_a_message_that_is_lost_behind_others_is_sent_again(own_service: Service) -> None:
    """As if a worker had died between popping it and noting it down."""
    assert load(own_service, "single", slots=1, context_length=2048)[0] == 200
    # So many choices that it does not end by itself; they are made one after the other.
    body = {"model": "single", "prompt": "5", "max_tokens": 1000, "temperature": 0, "n": 100}
    endless = Answer(own_service, "completions", {**body, "stream": True}).read(1)
    reader = threading.Thread(target=endless.read)
    reader.start()
    clients = [Client(own_service, "single", 100, start) for start in range(2)]
    client, lists = own_service.redis, names.priority_lists("single")

    def waiting() -> list[bytes]:
        return [message for key in lists for message in client.lrange(key, 0, -1)]

    wait_for(lambda: len(waiting()) == 2, "two wait")
    (key,) = [key for key in lists if client.exists(key)]
    job_id = json.loads(client.lpop(key))["headers"]["id"].encode()

    def is_back() -> bool:
        found = waiting()
        return len(found) == 2 and any(job_id in message for message in found)

    wait_for(is_back, "it waits again, and so does the other one")
    whole = expected_text(5, 1000)
    wait_for(lambda: len(endless.text) > len(whole), "its first choice has ended")
    assert Answer(own_service, f"requests/{endless.request_id}/cancel", {}).status == 200
    reader.join()
    assert "request_cancelled" in endless.events[-1].data
    assert endless.text.startswith(whole)
    for each in clients:
        each.check()
