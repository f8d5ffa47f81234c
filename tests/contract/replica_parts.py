"""A replica's task side over a scripted engine: what a job leaves in Redis and in the log."""

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from shared.queue.job_queue import JobQueue
from shared.queue.lease import JobLeases
from shared.settings.fields import Settings
from tests.support.scripted_engine import ScriptedEngine
from worker.replica.context import ReplicaContext
from worker.replica.engine_loop import EngineLoop
from worker.replica.prompt import PromptBuilder
from worker.replica.publisher import Publisher
from worker.replica.tasks import generate, serve

REPLICA_ID = "m@n-1-2"


@contextmanager
def serving(
    server: redis.Redis, settings: Settings, *, is_draining: bool = False
) -> Iterator[EngineLoop]:
    """Let the generate task of this process run on a replica that answers "ab", and run it."""
    running_ttl_s = int(settings.request_timeout_s) + settings.job_ttl_s
    engine = ScriptedEngine(2, ["a", "b"])
    publisher = Publisher(server, settings.job_ttl_s, settings.request_timeout_s)
    loop = EngineLoop(engine, publisher.emit)
    serve(
        ReplicaContext(
            id=REPLICA_ID,
            client=server,
            loop=loop,
            publisher=publisher,
            prompts=PromptBuilder(engine, None, []),
            vocabulary=engine.vocabulary,
            on_busy=lambda: None,
            queue=JobQueue(server, running_ttl_s),
            leases=JobLeases(
                server, REPLICA_ID, job_ttl_s=settings.job_ttl_s, running_ttl_s=running_ttl_s
            ),
            running_ttl_s=running_ttl_s,
            max_queue_s=settings.max_queue_s,
            is_draining=lambda: is_draining,
        )
    )
    publisher.start()
    loop.start()
    try:
        yield loop
    finally:
        loop.stop()
        publisher.stop(10)


def run_job(job_id: str) -> None:
    """Run one job to its end, as the Celery worker does when its message comes."""
    generate(job_id)
