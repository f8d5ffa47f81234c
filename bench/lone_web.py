"""One web process without an engine: Redis, and a replica that is only announced.

What it is asked for stays queued, or is taken by a script (`bench.fake_replica`).
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import redis

from bench import servers
from bench.processes import free_port
from bench.servers import Server, child, pid_of, wait_for
from cli.service import embedded_redis, processes
from shared.redis.connection import connect
from shared.registry import records
from shared.registry.records import BEAT_S
from shared.settings.load import load as load_settings
from shared.wire.records import ReplicaRecord, ReplicaState


@contextmanager
def running(
    name: str, model: str, replica_id: str, more: str = "", application: str = ""
) -> Iterator[tuple[Server, str]]:
    """Redis, and one web process as `llmis up` starts it, which sees `model` served.

    Gives the server and the URL of Redis. `more` are lines of the settings file. `application`
    takes the place of the service's own.
    """
    command_of_web = processes.web()
    if application:
        command_of_web[-1] = application
    port = free_port()
    environment = servers.llmis_environment(name, f"port = {port}\n{more}\nmodels = []\n")
    settings = load_settings(environment)
    command, redis_url = embedded_redis.prepare(settings)
    settings = msgspec.structs.replace(settings, redis_url=redis_url)
    environment["REDIS_URL"] = redis_url
    with child(f"{name}-redis", command, environment) as redis_child:
        client = connect(settings, max_connections=2)
        wait_for(lambda: _answers_ping(client), redis_child)
        client.flushall()
        with (
            _announced(client, model, replica_id),
            child(f"{name}-web", command_of_web, environment) as web,
        ):
            wait_for(lambda: servers.answers(port, f"/v1/models/{model}"), web)
            yield Server(name, port, pid_of(web)), redis_url


def _answers_ping(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@contextmanager
def _announced(client: "redis.Redis", model: str, replica_id: str) -> Iterator[None]:
    """A replica's record in the registry, renewed as a real one renews it."""
    record = ReplicaRecord(
        id=replica_id,
        model=model,
        engine="none",
        device="cpu",
        node="bench",
        assignment_id="bench",
        pid=0,
        versions={},
        state=ReplicaState.READY,
        stage="ready",
        fraction=1.0,
        slots=1,
        busy_slots=0,
        waiting_sequences=0,
        context_length=1,
        capabilities=[],
        steps=0,
        step_age_s=0.0,
        generated_tokens=0,
        tokens_per_s=0.0,
        memory_bytes=0,
        mapped_bytes=0,
        estimated_bytes=0,
        started_at=time.time(),
    )
    is_over = threading.Event()

    def beat() -> None:
        while True:
            records.announce(client, record)
            if is_over.wait(BEAT_S):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
