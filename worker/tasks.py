"""The Celery side of a replica: the generate task and what a revocation does to it.

A task thread decodes its job, checks that it is still wanted, prepares the prompt, hands it to
the engine loop and waits. It never touches a token.
"""

import logging
import time
from dataclasses import dataclass
from typing import Any

import redis
from celery.exceptions import Ignore
from celery.worker import state as worker_state
from celery.worker.control import control_command, ok
from celery.worker.request import Request

from shared import messages, names, registry
from shared.celery_app import app
from shared.connections import payload_bytes
from shared.errors import (
    DeadlineExceeded,
    EngineError,
    LlmisError,
    ReplicaLost,
    RequestCancelled,
)
from shared.messages import Delta, Failed, Job
from worker.engine_loop import EngineLoop
from worker.job_run import JobDropped, JobRun
from worker.prompt import PromptBuilder
from worker.publisher import Publisher

_log = logging.getLogger(__name__)

CANCELLED = "The request was cancelled."


@dataclass(frozen=True, slots=True)
class Replica:
    """The parts of this process that tasks use."""

    id: str
    client: "redis.Redis"
    loop: EngineLoop
    publisher: Publisher
    prompts: PromptBuilder
    request_timeout_s: float


_replica: Replica | None = None


def serve(replica: Replica) -> None:
    """Make the tasks of this process run on `replica`."""
    global _replica
    _replica = replica


class GenerateRequest(Request):  # type: ignore[misc]
    """A generate task as the worker sees it: revoking it cancels the job in the engine."""

    def terminate(self, pool: Any, signal: Any = None) -> None:
        if _replica is not None:
            _replica.loop.cancel(self.id, RequestCancelled(CANCELLED))
        if self.time_start:
            self._announce_revoked("terminated", True, "CANCEL", False)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        self.terminate(pool, signal)


@control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")  # type: ignore[untyped-decorator]
def revoke(state: Any, task_id: Any, terminate: bool = False, **_: Any) -> Any:
    """Replace Celery's command, which asks a result backend about every unknown task."""
    task_ids = {task_id} if isinstance(task_id, str) else set(task_id)
    worker_state.revoked.update(task_ids)
    requests = [r for r in list(worker_state.reserved_requests) if r.id in task_ids]
    if terminate:
        for request in requests:
            request.terminate(state.consumer.pool)
    return ok(f"revoked here: {sorted(r.id for r in requests)}")


@app.task(name=names.GENERATE_TASK, Request=f"{__name__}:GenerateRequest")  # type: ignore[untyped-decorator]
def generate(job_id: str) -> None:
    """Run one job to its end."""
    assert _replica is not None, "serve() comes before the worker starts"
    try:
        outcome = _run(_replica, job_id)
    except Exception:
        _log.exception("job failed outside of the engine", extra={"request_id": job_id})
        raise
    if outcome == RequestCancelled.code:
        # Announced as revoked already: no success may follow.
        raise Ignore()


def _run(replica: Replica, job_id: str) -> str:
    payload = replica.client.get(names.job_key(job_id))
    if payload is None:
        _log.warning("job is gone, nobody waits for it", extra={"request_id": job_id})
        return "expired"
    job = messages.decode_job(payload_bytes(payload))
    if not _claim(replica, job):
        _log.info("second delivery of a running job dropped", extra={"request_id": job_id})
        return "duplicate"
    run = JobRun(job, attempt=job.attempt, sequences=[])
    run.next_seq = replica.client.llen(names.log_key(job_id))
    try:
        if run.next_seq:
            _resume(replica, run)
        if time.time() > job.deadline_at:
            raise DeadlineExceeded("The request waited in the queue until its deadline.")
        run.sequences = replica.prompts.sequences(job)
    except LlmisError as error:
        _fail(replica, run, error)
    else:
        replica.loop.submit(run)
        # The flag is set before the revocation is sent: one of the two is seen.
        if replica.client.exists(names.cancel_key(job_id)):
            replica.loop.cancel(job_id, RequestCancelled(CANCELLED))
    run.done.wait()
    _log_end(replica, run)
    return run.outcome


def _claim(replica: Replica, job: Job) -> bool:
    """Take the job for this replica; False when a live replica has it."""
    key = names.claim_key(job.id)
    ttl_s = int(replica.request_timeout_s) + 60
    if replica.client.set(key, replica.id, nx=True, ex=ttl_s):
        return True
    holder = payload_bytes(replica.client.get(key) or b"").decode()
    if holder == replica.id or any(r.id == holder for r in registry.read(replica.client)):
        return False
    replica.client.set(key, replica.id, ex=ttl_s)
    return True


def _resume(replica: Replica, run: JobRun) -> None:
    """Continue the log of a replica that is gone. Raises ReplicaLost where text is out."""
    run.attempt += 1
    log = replica.client.lrange(names.log_key(run.id), 0, -1)
    for payload in log:
        event = messages.decode_event(payload_bytes(payload))
        if isinstance(event, Delta | Failed):
            raise ReplicaLost("The replica that ran this request died in the middle of it.")


def _fail(replica: Replica, run: JobRun, error: LlmisError) -> None:
    run.outcome = error.code or error.type
    replica.publisher.emit([(run, JobDropped(error))])


def _log_end(replica: Replica, run: JobRun) -> None:
    usage, timings = run.usage(), run.timings()
    level = logging.ERROR if run.outcome == EngineError.code else logging.INFO
    _log.log(
        level,
        "request done",
        extra={
            "request_id": run.id,
            "model": run.job.model,
            "replica": replica.id,
            "outcome": run.outcome,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "queue_time_ms": round(1000 * timings.queue_s, 1),
            "prefill_ms": round(1000 * timings.prefill_s, 1),
            "decode_ms": round(1000 * timings.decode_s, 1),
        },
    )
