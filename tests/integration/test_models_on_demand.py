"""Models come with their first request and go by themselves."""

import http.client
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Service, running_service, wait_for
from tests.support.admin_client import (
    Completion,
    admin,
    lazy_models,
    load,
    model,
    unload,
    wait_for_state,
)
from tests.support.counter_model import expected_text
from tests.support.jobs import is_finished
from tests.support.paused_replica import slowed, stopped
from tests.support.threads import Client

_RESIDENCE_S = 1.5
_LIMIT = 320_000_000
"""Bytes: more than a counter and one lazy model need, and less than with another one."""


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with room for one model besides the two counters that stay."""
    extra = f"max_loaded_models = 3\nmin_residence_s = {_RESIDENCE_S}\n" + lazy_models("a", "b")
    folder = tmp_path_factory.mktemp("crowded")
    with running_service(folder, extra=extra, counters_more="pin = true") as running:
        yield running


def _loads(service: Service, name: str = "") -> int:
    """How often a replica became ready, by the agent's log."""
    lines = service.log("agent").splitlines()
    return sum('"replica ready"' in line and f'"replica": "{name}' in line for line in lines)


def _ask_all(service: Service, models: list[str], num_tokens: int) -> None:
    """One request for each entry at the same moment; all answers must be right."""
    results: dict[int, Completion] = {}

    def ask(start: int) -> None:
        results[start] = Completion(service, models[start], num_tokens, start).read()

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for start in range(len(models)):
        assert results[start].text == expected_text(start, num_tokens), results[start].error


def test_a_hundred_first_requests_load_a_model_once(crowded: Service) -> None:
    _ask_all(crowded, ["a"] * 100, 20)
    assert len(crowded.pids("worker.replica", "a@")) == 1
    wait_for(lambda: _loads(crowded, "a@"), "the agent has noticed")
    assert _loads(crowded, "a@") == 1


def test_two_models_that_take_turns_both_answer(crowded: Service) -> None:
    """A B A B: each evicts the other, but not before the other had its time."""
    for _ in range(2):
        for name in ("a", "b"):
            assert Completion(crowded, name, 20).read().text == expected_text(5, 20)
    wait_for(lambda: _loads(crowded, "b@") == 2, "both times b was loaded")
    assert len(crowded.pids("worker.replica")) <= 3


def test_requests_for_both_at_once_do_not_thrash(crowded: Service) -> None:
    """What waits for the loaded model is served before it has to go."""
    for name in ("a", "b"):
        unload(crowded, name)
        wait_for_state(crowded, name, "unloaded", 60)
    begun = _loads(crowded)
    asked = ["a", "b"] * 8
    clients = [Client(crowded, name, 300, start) for start, name in enumerate(asked)]

    def spawned() -> list[int]:
        return [pid for name in "ab" for pid in crowded.pids("worker.replica", f"{name}@")]

    # The first replica stands still until all requests are queued: none comes late.
    (pid,) = wait_for(spawned, "a replica is spawned")
    with stopped(pid):
        wait_for(lambda: sum(map(crowded.num_queued, "ab")) == len(asked), "all are queued")
    for client in clients:
        client.check()
    assert _loads(crowded) - begun <= 3


@contextmanager
def _busy(service: Service, name: str) -> Iterator[None]:
    """The model is loaded, and its job does not end within."""
    assert Completion(service, name, 1).read().error is None
    with slowed(*service.pids("worker.replica", f"{name}@")):
        long = Completion(service, name, 4000).read(2)
        yield
        assert not is_finished(service.redis, long.request_id)
    assert long.read().text == expected_text(5, 4000)


def test_a_model_with_running_jobs_is_not_evicted(crowded: Service) -> None:
    with _busy(crowded, "a"):
        short = Client(crowded, "b", 20)
        wait_for(lambda: crowded.num_queued("b"), "it waits for its model")
        wait_for(lambda: _uptime_s(crowded, "a") > 2 * _RESIDENCE_S, "a has had its time")
        assert [r["state"] for r in model(crowded, "a")["replicas"]] == ["ready"]
        assert not crowded.pids("worker.replica", "b@")
    short.check()


def _uptime_s(service: Service, name: str) -> float:
    return float(model(service, name)["replicas"][0]["uptime_s"])


def test_a_load_over_the_api_that_finds_no_room_is_refused(crowded: Service) -> None:
    with _busy(crowded, "a"):
        status, answer = load(crowded, "c")
    assert (status, answer["error"]["code"]) == (507, "too_many_models")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that has room for one of its two pinned models, and for no other one."""
    extra = "max_loaded_models = 1\n" + lazy_models("late")
    folder = tmp_path_factory.mktemp("full")
    with running_service(folder, extra=extra, counters_more="pin = true") as running:
        yield running


def _served(service: Service) -> list[str]:
    return [name for name in ("counter", "counter-small") if model(service, name)["replicas"]]


def test_a_service_starts_although_a_model_has_no_room(full: Service) -> None:
    assert len(_served(full)) == 1


def test_a_request_for_a_model_that_can_never_fit_fails_with_507(full: Service) -> None:
    completion = Completion(full, "late", 5).read()
    assert completion.response.status == 507
    assert completion.error["code"] == "too_many_models"
    assert completion.response.headers["Retry-After"]
    wait_for(lambda: not full.num_queued("late"), "no request without a reader is left")
    # And the other one has not been touched.
    (served,) = _served(full)
    assert Completion(full, served, 5).read().text == expected_text(5, 5)


def test_an_idle_model_goes_after_its_time_and_comes_back(own_service: Service) -> None:
    first = Completion(own_service, "idle", 20).read()
    assert first.text == expected_text(5, 20)
    assert wait_for_state(own_service, "idle", "unloaded", 60)["replicas"] == []
    wait_for(lambda: not own_service.pids("worker.replica", "idle@"), "its process is gone", 60)
    assert Completion(own_service, "idle", 20).read().text == expected_text(5, 20)


def test_progress_reaches_who_waits_for_a_load(own_service: Service) -> None:
    """The load cannot go on while its replica stands still."""
    client = Client(own_service, "lazy", 5)
    (pid,) = wait_for(lambda: own_service.pids("worker.replica", "lazy@"), "it is spawned", 60)
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: _has_seen(client, "loading lazy: spawning"), "progress comes", 60)
    finally:
        os.kill(pid, signal.SIGCONT)
    client.check()


def _has_seen(client: Client, comment: str) -> bool:
    completion = client.completion
    return completion is not None and any(c.startswith(comment) for c in completion.comments)


def test_room_is_made_within_the_memory_limit(tmp_path: Path) -> None:
    """A pinned counter and one more fit into the limit: the second evicts the first."""
    extra = f"memory_limit_bytes = {_LIMIT}\nmin_residence_s = 0\n" + lazy_models("a", "b")
    pinned = "pin = true"
    with running_service(tmp_path, small=False, extra=extra, counters_more=pinned) as service:
        for name in ("a", "b"):
            assert Completion(service, name, 20).read().text == expected_text(5, 20)
            taken = [r["memory_estimated_bytes"] for r in replicas_of_all(service)]
            assert sum(taken) <= _LIMIT
        assert len(replicas_of_all(service)) == 2


def replicas_of_all(service: Service) -> list[Any]:
    """The admin views of the replicas that are not on their way out."""
    models = admin(service, "/models")[1]["data"]
    return [r for view in models for r in view["replicas"] if r["state"] != "draining"]


def test_a_service_whose_models_wait_for_their_first_request_is_ready(own_service: Service) -> None:
    for name in ("counter", "counter-small"):
        assert unload(own_service, name)[0] == 200
    wait_for(lambda: _readyz(own_service) == 200, "it is ready to load one")
    assert Completion(own_service, "counter-small", 5).read().text == expected_text(5, 5)
    wait_for(lambda: _readyz(own_service) == 200, "the web tier has seen the replica")


def _readyz(service: Service) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    connection.request("GET", "/readyz")
    return connection.getresponse().status


def test_a_chat_template_that_has_gone_is_a_failed_model(own_service: Service) -> None:
    (own_service.data_dir / "styled.jinja").unlink()
    completion = Completion(own_service, "styled", 5).read()
    assert completion.error["code"] == "model_failed"
    assert str(own_service.data_dir) not in completion.error["message"]
    assert model(own_service, "styled")["path"] == "counter.gguf"
    status, answer = admin(own_service, "/models/load", {"name": "styled"})
    assert (status, answer["error"]["param"]) == (422, "chat_template")
