"""The Celery side of a replica: the generate task and what a revocation does to it."""

from typing import Any

from celery.exceptions import Ignore
from celery.worker import state as worker_state
from celery.worker.control import control_command, ok
from celery.worker.request import Request

from shared import names
from shared.celery_app import app
from shared.errors import RequestCancelled
from shared.queue import lease
from worker.replica import job_runner
from worker.replica.attempt import Preemption
from worker.replica.context import ReplicaContext

_replica: ReplicaContext | None = None


def serve(replica: ReplicaContext) -> None:
    """Make the tasks of this process run on `replica`."""
    global _replica
    _replica = replica


class GenerateRequest(Request):  # type: ignore[misc]
    """A generate task as the worker sees it: terminating it stops the job in the engine."""

    def terminate(self, pool: Any, signal: Any = None) -> None:
        if _replica is not None:
            flag = names.LEFT if signal == names.LEFT.decode() else names.CANCELLED
            job_runner.stop(_replica, self.id, flag)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        self.terminate(pool, signal)

    def on_failure(self, exc_info: Any, *arguments: Any, **options: Any) -> Any:
        """The task has raised. For Flower, one that was stopped is no success."""
        raised = exc_info.exception
        if isinstance(getattr(raised, "exc", raised), Ignore):  # the pool has wrapped it
            self.send_event("task-revoked", terminated=True, signum="CANCEL", expired=False)
        return super().on_failure(exc_info, *arguments, **options)


@control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")  # type: ignore[untyped-decorator]
def revoke(state: Any, task_id: Any, signal: Any = None, **_: Any) -> Any:
    """Replace Celery's command: cancel the jobs, here or when they are popped.

    Celery's own drops a queued task in silence, and its reader would wait for ever; it also asks
    a result backend about every task that it does not know. Here a queued job gets the cancel
    flag, and the replica that pops it writes the end into its log. The signal `left` comes from
    the web tier, which has set its own flag: the job has no reader any more.
    """
    task_ids = {task_id} if isinstance(task_id, str) else set(task_id)
    try:
        if _replica is not None and signal != names.LEFT.decode():
            # Before the termination: a task that begins between the two reads the flag.
            for job_id in task_ids:
                lease.flag_cancelled(_replica.client, job_id, _replica.running_ttl_s)
    finally:  # a job that runs here stops without Redis, too
        for request in [r for r in list(worker_state.reserved_requests) if r.id in task_ids]:
            request.terminate(state.consumer.pool, signal=signal)
    return ok(f"cancelled: {sorted(task_ids)}")


@app.task(bind=True, name=names.GENERATE_TASK, Request=f"{__name__}:GenerateRequest")  # type: ignore[untyped-decorator]
def generate(self: Any, job_id: str) -> None:
    """Run one job to its end."""
    assert _replica is not None, "serve() comes before the worker starts"
    if job_runner.run(_replica, job_id) in (RequestCancelled.code, Preemption.LEFT):
        raise Ignore()
