"""Models come with their first request and go by themselves."""

import http.client
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.admin_client import Completion, admin, lazy_models, load, model, unload, wait_for_state
from tests.conftest import Service, running_service, wait_for
from tests.counter_model import expected_text


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with room for one model besides the two counters that stay."""
    extra = "max_loaded_models = 3\nmin_residence_s = 1.5\n" + lazy_models("a", "b")
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
    begun = _loads(crowded)
    _ask_all(crowded, ["a", "b"] * 8, 300)
    assert _loads(crowded) - begun <= 3


def test_a_model_with_running_jobs_is_not_evicted(crowded: Service) -> None:
    long = Completion(crowded, "a", 16000).read(2)
    short = Completion(crowded, "b", 20)
    view = model(crowded, "a")
    assert [r["state"] for r in view["replicas"]] == ["ready"], "it is not being stopped"
    assert long.read().text == expected_text(5, 16000)
    assert short.read().text == expected_text(5, 20)


def test_a_load_over_the_api_that_finds_no_room_is_refused(crowded: Service) -> None:
    long = Completion(crowded, "a", 12000).read(2)
    status, answer = load(crowded, "c")
    assert (status, answer["error"]["code"]) == (507, "too_many_models")
    assert long.read().text == expected_text(5, 12000)


def test_a_request_for_a_model_that_can_never_fit_fails_with_507(tmp_path: Path) -> None:
    extra = "max_loaded_models = 2\n" + lazy_models("late")
    with running_service(tmp_path, extra=extra, counters_more="pin = true") as service:
        completion = Completion(service, "late", 5).read()
        assert completion.response.status == 507
        assert completion.error["code"] == "too_many_models"
        assert completion.response.headers["Retry-After"]
        wait_for(lambda: not service.num_queued("late"), "no request without a reader is left")
        # And the others have not been touched.
        assert Completion(service, "counter", 5).read().text == expected_text(5, 5)


def test_an_idle_model_goes_after_its_time_and_comes_back(tmp_path: Path) -> None:
    extra = "min_residence_s = 0\n" + lazy_models("idle", more="ttl_s = 1")
    with running_service(tmp_path, extra=extra) as service:
        first = Completion(service, "idle", 20).read()
        assert first.text == expected_text(5, 20)
        assert wait_for_state(service, "idle", "unloaded", 15)["replicas"] == []
        wait_for(lambda: not service.pids("worker.replica", "idle@"), "its process is gone")
        assert Completion(service, "idle", 20).read().text == expected_text(5, 20)


def test_progress_reaches_who_waits_for_a_load(tmp_path: Path) -> None:
    with running_service(tmp_path, extra=lazy_models("slow")) as service:
        # The load cannot go on while its replica stands still.
        stopper = threading.Thread(target=_hold, args=(service, "slow", 4.0))
        stopper.start()
        completion = Completion(service, "slow", 5).read()
        stopper.join()
        assert completion.text == expected_text(5, 5)
        assert any(c.startswith("loading slow: spawning") for c in completion.comments)


def _hold(service: Service, name: str, seconds: float) -> None:
    (pid,) = wait_for(lambda: service.pids("worker.replica", f"{name}@"), "it is spawned")
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def test_a_service_starts_although_a_model_has_no_room(tmp_path: Path) -> None:
    extra = "max_loaded_models = 1\n"
    with running_service(tmp_path, extra=extra, counters_more="pin = true") as service:
        served = [name for name in ("counter", "counter-small") if model(service, name)["replicas"]]
        assert len(served) == 1


def test_room_is_made_within_the_memory_limit(tmp_path: Path) -> None:
    """Two pinned counters and one more fit into the limit: the other two take turns."""
    extra = "memory_limit_bytes = 400_000_000\nmin_residence_s = 0\n" + lazy_models("a", "b")
    with running_service(tmp_path, extra=extra, counters_more="pin = true") as service:
        for name in ("a", "b", "a"):
            assert Completion(service, name, 20).read().text == expected_text(5, 20)
            taken = [r["memory_estimated_bytes"] for r in replicas_of_all(service)]
            assert sum(taken) <= 400_000_000
        assert len(replicas_of_all(service)) == 3


def replicas_of_all(service: Service) -> list[Any]:
    """The admin views of the replicas that are not on their way out."""
    models = admin(service, "/models")[1]["data"]
    return [r for view in models for r in view["replicas"] if r["state"] != "draining"]


def test_a_service_whose_models_wait_for_their_first_request_is_ready(
    own_service: Service,
) -> None:
    for name in ("counter", "counter-small"):
        assert unload(own_service, name)[0] == 200
    wait_for(lambda: _readyz(own_service) == 200, "it is ready to load one")
    assert Completion(own_service, "counter-small", 5).read().text == expected_text(5, 5)
    assert _readyz(own_service) == 200


def _readyz(service: Service) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    connection.request("GET", "/readyz")
    return connection.getresponse().status


def test_a_chat_template_that_has_gone_is_a_failed_model(tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages[0].content }}")
    extra = lazy_models("styled", more=f"chat_template = {str(template)!r}")
    with running_service(tmp_path, extra=extra) as service:
        template.unlink()
        completion = Completion(service, "styled", 5).read()
        assert completion.error["code"] == "model_failed"
        assert str(tmp_path) not in completion.error["message"]
        assert model(service, "styled")["path"] == "counter.gguf"
        status, answer = admin(service, "/models/load", {"name": "styled"})
        assert (status, answer["error"]["param"]) == (422, "chat_template")
