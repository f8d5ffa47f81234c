"""Redis has no memory left: what is accepted ends well, what is new is refused."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from shared import names
from shared.queue import lease
from shared.registry import records
from tests.conftest import Service, wait_for
from tests.support.admin_client import Completion, load, readiness
from tests.support.counter_model import expected_text
from tests.support.full_disk import full_disk
from tests.support.paused_replica import stopped
from tests.support.threads import Client


def test_a_full_redis_refuses_what_is_new_and_lets_the_rest_end(own_service: Service) -> None:
    assert load(own_service, "pair", slots=2, context_length=8192)[0] == 200
    processes = own_service.pids("worker.")
    running = [Client(own_service, "pair", 5000, start) for start in range(2)]
    waiting = [Client(own_service, "pair", 1000, start) for start in range(10, 14)]
    wait_for(lambda: all(client.has_text for client in running), "they run")
    redis = own_service.redis
    redis.config_set("maxmemory", "1mb")

    refused = Completion(own_service, "pair", 5)
    assert refused.response.status == 503
    assert refused.response.headers["Retry-After"]
    assert refused.read().error["code"] == "storage_full"
    assert readiness(own_service) == (503, ["Redis has no memory left"])
    redis.execute_command("CLIENT", "KILL", "TYPE", "normal")  # those who connect again write, too
    for client in running + waiting:
        client.check()
    _wait_for_beats(own_service)

    redis.config_set("maxmemory", "0")
    assert readiness(own_service) == (200, [])
    assert Completion(own_service, "pair", 20).read().text == expected_text(5, 20)
    assert own_service.pids("worker.") == processes, own_service.log("agent")[-4000:]


def _wait_for_beats(service: Service) -> None:
    """Replicas and the agent write their records although Redis is full: an agent kills replicas
    that it has not heard of for a while."""
    client = service.redis
    keys = [names.replica_key(record.id) for record in records.read(client)]
    keys += [names.node_key(node.id) for node in records.read_nodes(client)]
    assert len(keys) == 4
    for key in keys:
        left_ms = [client.pttl(key)]

        def is_written(key: str = key, left_ms: list[int] = left_ms) -> bool:
            left_ms.append(client.pttl(key))
            return left_ms[-1] > left_ms[-2]

        wait_for(is_written, f"{key} is written again", 60)


def test_a_full_disk_is_503_for_those_who_wait_and_for_those_who_come(own_service: Service) -> None:
    service = own_service
    assert load(service, "pair", slots=1, context_length=8192)[0] == 200
    running = Completion(service, "pair", 8000, n=100).read(1)  # does not end by itself
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(Completion, service, "pair", 20, stream=False) for _ in range(2)]
        wait_for(lambda: service.num_queued("pair") == 2, "they wait")
        with full_disk(service.redis, service.data_dir / "redis"):
            began_at = time.monotonic()
            for asked in [*waiting, pool.submit(Completion, service, "pair", 5)]:
                refused = asked.result(30)
                assert refused.response.status == 503
                assert refused.response.headers["Retry-After"]
                assert refused.read().error["code"] == "storage_full"
            assert running.read().error["code"] == "storage_full"
            assert time.monotonic() - began_at < 20
    wait_for(lambda: readiness(service) == (200, []), "it is ready again", 60)
    assert Completion(service, "pair", 20).read().text == expected_text(5, 20)


def test_a_replica_that_dies_while_redis_is_full_comes_back(own_service: Service) -> None:
    assert load(own_service, "long", slots=1, context_length=8192)[0] == 200
    (pid,) = own_service.pids("worker.replica", "long@")
    stream = Completion(own_service, "long", 5000).read(1)
    with stopped(pid):
        own_service.redis.config_set("maxmemory", "1mb")
        os.kill(pid, signal.SIGKILL)
    assert stream.read().text == expected_text(5, 5000)
    claim = lease.read(own_service.redis, stream.response.headers["x-request-id"])
    assert claim is not None
    assert claim.attempt >= 1
