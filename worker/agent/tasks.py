"""The Celery side of an agent: the load and unload tasks.

They are acknowledged when they begin: an operation that was interrupted is not begun again by
itself, its lock expires and who waits for it is told.
"""

import logging
import os
import signal
from typing import Any

from celery.worker.control import control_command, ok

from shared import names, operations
from shared.celery_app import app
from shared.errors import InternalError
from shared.lifecycle import ModelSpec, OperationKind
from shared.operations import Operation
from worker.agent.agent import Agent
from worker.agent.loading import Loading
from worker.agent.unloading import Unloading

_log = logging.getLogger(__name__)
_RETRY_S = 5.0
_agent: Agent | None = None


def serve(agent: Agent) -> None:
    """Make the tasks of this process run on `agent`."""
    global _agent
    _agent = agent


@control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")  # type: ignore[untyped-decorator]
def revoke(state: Any, task_id: Any, **_: Any) -> Any:
    """Replace Celery's command: cancellations reach every worker, and an agent has no jobs."""
    return ok("an agent has no jobs")


@app.task(name=names.LOAD_TASK, acks_late=False)  # type: ignore[untyped-decorator]
def load_model(operation_id: str) -> None:
    """Carry out a load, or hand it to the next node."""
    agent = _serving()
    command = operations.read_load(agent.client, operation_id)
    while command is not None:
        spec = command.spec
        operation = Operation(agent.client, OperationKind.LOAD, operation_id, command.spec.name)
        try:
            command = Loading(agent, operation, command).run()
        except Exception as exc:
            _log.exception("the load of %s failed", operation.model)
            _give_up(agent, operation, spec, exc)
            return
        if command is not None and command.nodes[0] != agent.node:
            operations.rewrite(agent.client, command)
            app.send_task(
                names.LOAD_TASK,
                args=[operation_id],
                queue=names.node_queue(command.nodes[0]),
                ignore_result=True,
            )
            return


def _give_up(agent: Agent, operation: Operation, spec: ModelSpec, exc: Exception) -> None:
    error = InternalError(f"The agent failed: {exc}")
    agent.fleet.note_failure(spec, error, _RETRY_S)
    operation.fail(operations.failure_of(error, _RETRY_S))


@app.task(name=names.UNLOAD_TASK, acks_late=False)  # type: ignore[untyped-decorator]
def unload_model(operation_id: str) -> None:
    """Stop this node's replicas of a model."""
    agent = _serving()
    command = operations.read_unload(agent.client, operation_id)
    if command is None:
        _log.warning("unload %s is gone", operation_id)
        return
    operation = Operation(agent.client, OperationKind.UNLOAD, command.id, command.model)
    Unloading(agent, operation, command).run()


@app.task(name=names.RESTART_AGENT_TASK, acks_late=False)  # type: ignore[untyped-decorator]
def restart_agent() -> None:
    """Start the agent's program anew; its replicas run on."""
    _serving().is_restarting = True
    os.kill(os.getpid(), signal.SIGTERM)


def _serving() -> Agent:
    assert _agent is not None, "serve() comes before the worker starts"
    return _agent
