"""Models come by demand and go by themselves; replicas and agents die and come back."""

import http.client
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shared import names
from tests.admin_client import Completion, admin, load, model, unload, wait_for_state
from tests.conftest import TEST_FILES, Service, running_service, wait_for
from tests.counter_model import expected_text

_LAZY = """
[[models]]
name = "{name}"
path = "counter.gguf"
context_length = 16384
slots = 2
preload = false
{more}
"""


def _lazy(*names: str, more: str = "") -> str:
    return "".join(_LAZY.format(name=name, more=more) for name in names)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with room for one model besides the two counters that stay."""
    extra = "max_loaded_models = 3\nmin_residence_s = 1.5\n" + _lazy("a", "b")
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
    extra = "max_loaded_models = 2\n" + _lazy("late")
    with running_service(tmp_path, extra=extra, counters_more="pin = true") as service:
        completion = Completion(service, "late", 5).read()
        assert completion.response.status == 507
        assert completion.error["code"] == "too_many_models"
        assert completion.response.headers["Retry-After"]
        queue = names.model_queue("late")
        wait_for(lambda: not service.redis.exists(queue), "no request without a reader is left")
        # And the others have not been touched.
        assert Completion(service, "counter", 5).read().text == expected_text(5, 5)


def test_an_idle_model_goes_after_its_time_and_comes_back(tmp_path: Path) -> None:
    extra = "min_residence_s = 0\n" + _lazy("idle", more="ttl_s = 1")
    with running_service(tmp_path, extra=extra) as service:
        first = Completion(service, "idle", 20).read()
        assert first.text == expected_text(5, 20)
        assert wait_for_state(service, "idle", "unloaded", 15)["replicas"] == []
        wait_for(lambda: not service.pids("worker.replica", "idle@"), "its process is gone")
        assert Completion(service, "idle", 20).read().text == expected_text(5, 20)


def test_progress_reaches_who_waits_for_a_load(tmp_path: Path) -> None:
    with running_service(tmp_path, extra=_lazy("slow")) as service:
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


# -- death and return ------------------------------------------------------------------------


def test_a_killed_replica_is_ready_again_by_itself(own_service: Service) -> None:
    (pid,) = own_service.pids("worker.replica", "counter-small")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: own_service.pids("worker.replica", "counter-small") not in ([], [pid]), "it")
    assert Completion(own_service, "counter-small", 20).read().text == expected_text(5, 20)
    assert "killed by SIGKILL" in own_service.log("agent")


def test_a_model_that_cannot_come_back_is_marked_failed(own_service: Service) -> None:
    models = TEST_FILES / "models"
    shutil.copy(models / "counter.gguf", models / "passing.gguf")
    assert load(own_service, "passing", path="passing.gguf")[0] == 200
    (models / "passing.gguf").unlink()
    (pid,) = own_service.pids("worker.replica", "passing")
    os.kill(pid, signal.SIGKILL)
    view = wait_for_state(own_service, "passing", "failed")
    assert "no file at" in view["error"]["message"]
    completion = Completion(own_service, "passing", 5).read()
    assert completion.error["code"] == "model_failed"
    assert str(models) not in completion.error["message"], "paths are the operator's business"
    assert unload(own_service, "passing")[0] == 200
    assert model(own_service, "passing") is None


def test_a_replica_that_dies_three_times_in_a_row_is_given_up(own_service: Service) -> None:
    assert load(own_service, "fragile")[0] == 200
    for _ in range(3):
        wait_for_state(own_service, "fragile", "ready")
        (pid,) = own_service.pids("worker.replica", "fragile")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda dead=pid: dead not in own_service.pids("worker.replica"), "it is dead")
        wait_for(lambda: (model(own_service, "fragile") or {})["state"] != "ready", "it is seen")
    view = wait_for_state(own_service, "fragile", "failed")
    assert "SIGKILL" in view["error"]["message"]
    assert not own_service.pids("worker.replica", "fragile")


def test_a_replica_that_hangs_is_killed_and_started_again(own_service: Service) -> None:
    (pid,) = own_service.pids("worker.replica", "counter-small")
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: pid not in own_service.pids("worker.replica"), "it is killed", 40)
    wait_for_state(own_service, "counter-small", "ready")
    assert Completion(own_service, "counter-small", 20).read().text == expected_text(5, 20)


def test_a_killed_agent_is_replaced_and_adopts_its_replicas(own_service: Service) -> None:
    assert load(own_service, "extra", context_length=30000)[0] == 200
    replicas = own_service.pids("worker.replica")
    stream = Completion(own_service, "extra", 29000).read(2)
    (agent,) = own_service.pids("worker.agent")
    os.kill(agent, signal.SIGKILL)
    wait_for(lambda: [p for p in own_service.pids("worker.agent") if p != agent], "a new agent", 15)
    assert stream.read().text == expected_text(5, 29000)
    assert own_service.pids("worker.replica") == replicas
    wait_for(lambda: admin(own_service, "/nodes")[1]["data"], "the node is back", 15)
    # They are its own: it stops them, and restarts them when they die.
    assert unload(own_service, "extra")[0] == 200
    (pid,) = own_service.pids("worker.replica", "counter-small")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: own_service.pids("worker.replica", "counter-small") not in ([], [pid]), "it")
    assert Completion(own_service, "counter-small", 5).read().text == expected_text(5, 5)


def test_a_replica_that_died_with_its_agent_comes_back(own_service: Service) -> None:
    assert load(own_service, "extra")[0] == 200
    (agent,) = own_service.pids("worker.agent")
    (replica,) = own_service.pids("worker.replica", "extra")
    os.kill(agent, signal.SIGKILL)
    os.kill(replica, signal.SIGKILL)
    wait_for(lambda: own_service.pids("worker.replica", "extra") not in ([], [replica]), "it", 30)
    assert Completion(own_service, "extra", 20).read().text == expected_text(5, 20)


def test_replicas_that_nobody_keeps_end_by_themselves(tmp_path: Path) -> None:
    """Their Redis is gone, too, and one has a job whose events it cannot deliver."""
    with running_service(tmp_path, extra=_lazy("long")) as service:
        stream = Completion(service, "long", 16000).read(2)
        replicas = [psutil.Process(pid) for pid in service.pids("worker.replica")]
        assert len(replicas) == 3
        (agent,) = service.pids("worker.agent")
        service.process.kill()
        os.kill(agent, signal.SIGKILL)
        service.process.wait(10)
        _, alive = psutil.wait_procs(replicas, 90)
        assert not alive
        wait_for(lambda: not service.pids(), "no process is left", 30)
        stream.close()


def test_a_load_whose_agent_dies_is_finished_by_the_next_one(own_service: Service) -> None:
    body = {"name": "half", "path": "counter.gguf", "context_length": 512, "slots": 2, "pin": True}
    assert admin(own_service, "/models/load", body)[0] == 202
    wait_for(lambda: own_service.pids("worker.replica", "half@"), "it is spawned")
    (agent,) = own_service.pids("worker.agent")
    os.kill(agent, signal.SIGKILL)
    view = wait_for_state(own_service, "half", "ready", 30)
    wait_for(lambda: model(own_service, "half")["path"] == "counter.gguf", "it is known", 15)
    assert model(own_service, "half")["pin"] or view
    assert Completion(own_service, "half", 5).read().text == expected_text(5, 5)


def test_a_hanging_replica_that_was_told_to_stop_is_killed_by_the_next_agent(
    own_service: Service,
) -> None:
    assert load(own_service, "stuck")[0] == 200
    (replica,) = own_service.pids("worker.replica", "stuck@")
    os.kill(replica, signal.SIGSTOP)
    body = {"name": "stuck", "mode": "now"}
    assert admin(own_service, "/models/unload", body)[0] == 202
    (agent,) = own_service.pids("worker.agent")
    wait_for(lambda: not admin_names(own_service) & {"stuck"}, "it is being stopped")
    os.kill(agent, signal.SIGKILL)
    wait_for(lambda: replica not in own_service.pids("worker.replica"), "it is killed", 40)


def admin_names(service: Service) -> set[str]:
    """Models that some node keeps running."""
    return {name for node in admin(service, "/nodes")[1]["data"] for name in node["models"]}


def test_unloading_a_model_while_a_request_loads_it_loses_nothing(tmp_path: Path) -> None:
    with running_service(tmp_path, extra=_lazy("lazy")) as service:
        results: list[Completion] = []
        thread = threading.Thread(
            target=lambda: results.append(Completion(service, "lazy", 20).read())
        )
        thread.start()
        wait_for(lambda: service.pids("worker.replica", "lazy@"), "it is being loaded")
        assert unload(service, "lazy", mode="now")[0] == 200
        thread.join()
        assert results[0].text == expected_text(5, 20), results[0].error


def test_an_outage_of_redis_costs_no_replica(own_service: Service) -> None:
    replicas = own_service.pids("worker.replica")
    (valkey,) = own_service.pids("valkey-server")
    os.kill(valkey, signal.SIGSTOP)
    time.sleep(20)  # longer than a replica may be silent
    os.kill(valkey, signal.SIGCONT)
    wait_for(lambda: _answers(own_service), "it answers again", 30)
    assert own_service.pids("worker.replica") == replicas


def _answers(service: Service) -> bool:
    try:
        return Completion(service, "counter", 5).read().text == expected_text(5, 5)
    except OSError:
        return False


def test_a_drain_is_hurried_by_unloading_now(own_service: Service) -> None:
    assert load(own_service, "slow", context_length=30000)[0] == 200
    stream = Completion(own_service, "slow", 29900).read(2)
    assert admin(own_service, "/models/unload", {"name": "slow"})[0] == 202
    refused = wait_for(lambda: Completion(own_service, "slow", 5).read().error, "it is leaving")
    assert refused["code"] in ("model_unloaded", "model_not_found")
    assert load(own_service, "slow")[0] == 409
    assert unload(own_service, "slow", mode="now")[0] == 200
    assert stream.read().error["code"] == "model_unloaded"
    assert not own_service.pids("worker.replica", "slow@")


def test_an_agent_that_is_told_to_stop_in_the_middle_of_an_unload_stops(
    own_service: Service,
) -> None:
    assert load(own_service, "slow", context_length=30000)[0] == 200
    stream = Completion(own_service, "slow", 29900).read(2)
    assert admin(own_service, "/models/unload", {"name": "slow"})[0] == 202
    (agent,) = own_service.pids("worker.agent")
    os.kill(agent, signal.SIGTERM)
    wait_for(lambda: agent not in own_service.pids("worker.agent"), "it has stopped", 40)
    stream.close()


def test_a_service_starts_although_a_model_has_no_room(tmp_path: Path) -> None:
    extra = "max_loaded_models = 1\n"
    with running_service(tmp_path, extra=extra, counters_more="pin = true") as service:
        served = [name for name in ("counter", "counter-small") if model(service, name)["replicas"]]
        assert len(served) == 1


def test_what_was_loaded_comes_back_after_a_restart(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        assert load(service, "kept", pin=True)[0] == 200
    with running_service(tmp_path) as service:
        view = wait_for_state(service, "kept", "ready")
        assert view["pin"]
        assert Completion(service, "kept", 5).read().text == expected_text(5, 5)


def test_room_is_made_within_the_memory_limit(tmp_path: Path) -> None:
    """Two pinned counters and one more fit into the limit: the other two take turns."""
    extra = "memory_limit_bytes = 400_000_000\nmin_residence_s = 0\n" + _lazy("a", "b")
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
