"""Redis has no memory left: what is accepted ends well, what is new is refused."""

import time

from tests.admin_client import Completion, load, readiness
from tests.conftest import Service, wait_for
from tests.counter_model import expected_text
from tests.threads import Client

_LONGER_THAN_SILENCE_S = 20
"""An agent kills replicas that could not write their records for 15 s."""


def test_a_full_redis_refuses_what_is_new_and_lets_the_rest_end(own_service: Service) -> None:
    assert load(own_service, "pair", slots=2, context_length=30000)[0] == 200
    processes = own_service.pids("worker.")
    running = [Client(own_service, "pair", 20000, start) for start in range(2)]
    waiting = [Client(own_service, "pair", 3000, start) for start in range(10, 14)]
    wait_for(lambda: all(client.has_text for client in running), "they run")
    redis = own_service.redis
    redis.config_set("maxmemory", "1mb")
    full_since = time.monotonic()

    refused = Completion(own_service, "pair", 5)
    assert refused.response.status == 503
    assert refused.response.headers["Retry-After"]
    assert refused.read().error["code"] == "storage_full"
    assert readiness(own_service) == (503, ["Redis has no memory left"])
    redis.execute_command("CLIENT", "KILL", "TYPE", "normal")  # those who connect again write, too
    for client in running + waiting:
        client.check()
    time.sleep(max(0.0, full_since + _LONGER_THAN_SILENCE_S - time.monotonic()))

    redis.config_set("maxmemory", "0")
    assert readiness(own_service) == (200, [])
    assert Completion(own_service, "pair", 20).read().text == expected_text(5, 20)
    assert own_service.pids("worker.") == processes, own_service.log("agent")[-4000:]


def test_a_replica_that_dies_while_redis_is_full_comes_back(own_service: Service) -> None:
    assert load(own_service, "long", slots=1, context_length=30000)[0] == 200
    stream = Completion(own_service, "long", 20000).read(1)
    own_service.redis.config_set("maxmemory", "1mb")
    own_service.kill("worker.replica", "long@")
    assert stream.read().text == expected_text(5, 20000)
