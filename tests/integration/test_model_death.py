"""Replicas and agents are killed, hang and are told to stop; models come back."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from shared import names
from shared.registry.records import read
from shared.wire.records import ReplicaState
from tests.conftest import TEST_FILES, Service, running_service, wait_for
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
from tests.support.paused_replica import slowed, stopped


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


def test_a_model_with_one_replica_given_up_waits_for_the_other(own_service: Service) -> None:
    assert load(own_service, "two", replicas=2)[0] == 200
    _, other = own_service.pids("worker.replica", "two@")

    def victim() -> list[int]:
        return [pid for pid in own_service.pids("worker.replica", "two@") if pid != other]

    for _ in range(3):
        wait_for_state(own_service, "two", "ready")
        (pid,) = wait_for(victim, "it is there")
        wait_for(lambda pid=pid: _is_ready(own_service, pid), "it is ready")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: pid not in own_service.pids("worker.replica"), "it is dead")
    wait_for(lambda: own_service.redis.hexists(names.FAILURES, "two"), "one is given up")
    os.kill(other, signal.SIGKILL)
    wait_for(lambda: not own_service.pids("worker.replica", "two@"), "the other is dead, too")
    completion = Completion(own_service, "two", 20).read()
    assert (completion.error, completion.text) == (None, expected_text(5, 20))
    assert unload(own_service, "two")[0] == 200


def _is_ready(service: Service, pid: int) -> bool:
    records = read(service.redis)
    return any(r.pid == pid and r.state is ReplicaState.READY for r in records)


def test_a_replica_that_hangs_is_killed_and_started_again(own_service: Service) -> None:
    (pid,) = own_service.pids("worker.replica", "counter-small")
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: pid not in own_service.pids("worker.replica"), "it is killed")
    wait_for_state(own_service, "counter-small", "ready")
    assert Completion(own_service, "counter-small", 20).read().text == expected_text(5, 20)


def test_a_killed_agent_is_replaced_and_adopts_its_replicas(own_service: Service) -> None:
    assert load(own_service, "extra", context_length=4096)[0] == 200
    replicas = own_service.pids("worker.replica")
    (agent,), (extra,) = (own_service.pids(w) for w in ("worker.agent", " extra@"))
    with slowed(extra):
        stream = Completion(own_service, "extra", 2000).read(1)
    with stopped(extra):  # so that the stream does not end before the agent has
        os.kill(agent, signal.SIGKILL)
        wait_for(lambda: agent not in own_service.pids("worker.agent"), "it is dead")
    wait_for(lambda: [p for p in own_service.pids("worker.agent") if p != agent], "a new agent")
    assert stream.read().text == expected_text(5, 2000)
    assert own_service.pids("worker.replica") == replicas, own_service.log("agent")[-4000:]
    wait_for(lambda: admin(own_service, "/nodes")[1]["data"], "the node is back")
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
    wait_for(lambda: own_service.pids("worker.replica", "extra") not in ([], [replica]), "it")
    assert Completion(own_service, "extra", 20).read().text == expected_text(5, 20)


def test_replicas_that_nobody_keeps_end_by_themselves(tmp_path: Path) -> None:
    """Their Redis is gone, too, and one has a job whose events it cannot deliver."""
    with running_service(tmp_path, extra=lazy_models("long")) as service:
        stream = Completion(service, "long", 16000).read(2)
        replicas = [psutil.Process(pid) for pid in service.pids("worker.replica")]
        assert len(replicas) == 3
        (agent,) = service.pids("worker.agent")
        service.process.kill()
        os.kill(agent, signal.SIGKILL)
        service.process.wait(10)
        _, alive = psutil.wait_procs(replicas, 90)
        assert not alive
        wait_for(lambda: not service.pids(), "no process is left")
        stream.close()


def test_a_load_whose_agent_dies_is_finished_by_the_next_one(own_service: Service) -> None:
    body = {"name": "half", "path": "counter.gguf", "context_length": 512, "slots": 2, "pin": True}
    assert admin(own_service, "/models/load", body)[0] == 202
    wait_for(lambda: own_service.pids("worker.replica", "half@"), "it is spawned")
    (agent,) = own_service.pids("worker.agent")
    os.kill(agent, signal.SIGKILL)
    view = wait_for_state(own_service, "half", "ready")
    wait_for(lambda: model(own_service, "half")["path"] == "counter.gguf", "it is known")
    assert model(own_service, "half")["pin"] or view
    assert Completion(own_service, "half", 5).read().text == expected_text(5, 5)


def test_a_load_whose_agent_and_replica_die_goes_on_in_the_next_agent(own_service: Service) -> None:
    """Its lock, which the dead agent has left, is no obstacle."""
    body = {"name": "again", "path": "counter.gguf", "context_length": 512, "slots": 2}
    status, begun = admin(own_service, "/models/load", body)
    assert status == 202
    wait_for(lambda: own_service.pids("worker.replica", "again@"), "it is spawned")
    with stopped(*own_service.pids("worker.replica", "again@")):
        own_service.kill("worker.agent")
        own_service.kill("worker.replica", "again@")

    def end() -> Any:
        found = admin(own_service, f"/operations/{begun['id']}")[1]
        return found if found["state"] != "loading" else None

    assert wait_for(end, "it ends")["state"] == "ready"
    assert Completion(own_service, "again", 20).read().text == expected_text(5, 20)
    assert len(own_service.pids("worker.replica", "again@")) == 1


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
    wait_for(lambda: replica not in own_service.pids("worker.replica"), "it is killed")


def admin_names(service: Service) -> set[str]:
    """Models that some node keeps running."""
    return {name for node in admin(service, "/nodes")[1]["data"] for name in node["models"]}


def test_unloading_a_model_while_a_request_loads_it_loses_nothing(own_service: Service) -> None:
    results: list[Completion] = []
    thread = threading.Thread(
        target=lambda: results.append(Completion(own_service, "lazy", 20).read())
    )
    thread.start()
    wait_for(lambda: own_service.pids("worker.replica", "lazy@"), "it is being loaded")
    assert unload(own_service, "lazy", mode="now")[0] == 200
    thread.join()
    assert results[0].text == expected_text(5, 20), results[0].error


def test_an_outage_of_redis_costs_no_replica(own_service: Service) -> None:
    replicas = own_service.pids("worker.replica")
    (valkey,) = own_service.pids("valkey-server")
    os.kill(valkey, signal.SIGSTOP)
    time.sleep(20)  # longer than a replica may be silent
    os.kill(valkey, signal.SIGCONT)
    wait_for(lambda: _answers(own_service), "it answers again")
    assert own_service.pids("worker.replica") == replicas, own_service.log("agent")[-4000:]


def _answers(service: Service) -> bool:
    try:
        return Completion(service, "counter", 5).read().text == expected_text(5, 5)
    except OSError:
        return False


def test_a_drain_is_hurried_by_unloading_now(own_service: Service) -> None:
    assert load(own_service, "slow", context_length=30000)[0] == 200
    with slowed(*own_service.pids("worker.replica", "slow@")):
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
    with slowed(*own_service.pids("worker.replica", "slow@")):
        stream = Completion(own_service, "slow", 29900).read(2)
        assert admin(own_service, "/models/unload", {"name": "slow"})[0] == 202
        (agent,) = own_service.pids("worker.agent")
        os.kill(agent, signal.SIGTERM)
        wait_for(lambda: agent not in own_service.pids("worker.agent"), "it has stopped")
    stream.close()
