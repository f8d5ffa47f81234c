"""The Celery side of an agent: the load and unload tasks.

A task is acknowledged when it begins. The node's next agent goes on with an interrupted load; the
lock of another interrupted operation expires, and its readers see the operation as lost.
"""

import logging
import os
import signal
from typing import Any

from celery.worker.control import control_command, ok

from shared import names
from shared.celery_app import app
from shared.errors import InternalError
from shared.registry import operations
from shared.registry.running_operation import RunningOperation
from shared.wire.operations import OperationKind
from worker.agent.agent import Agent
from worker.agent.load import LoadRunner
from worker.agent.unload import UnloadRunner

_log = logging.getLogger(__name__)
_RETRY_S = 5.0
_agent: Agent | None = None
_loads: dict[str, object] = {}
"""By id, the loads that run here: a second delivery of one is dropped."""


def set_agent(agent: Agent) -> None:
    """Set the agent on which the tasks of this process run."""
    global _agent
    _agent = agent


@control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")  # type: ignore[untyped-decorator]
def revoke(state: Any, task_id: Any, **_: Any) -> Any:
    """Replace Celery's command: a cancellation goes to all workers, and an agent runs no jobs."""
    return ok("an agent runs no jobs")


@app.task(name=names.LOAD_TASK, acks_late=False)  # type: ignore[untyped-decorator]
def load_model(operation_id: str) -> None:
    """Run a load as far as this node can, then send the command to the next node."""
    mine = object()
    if _loads.setdefault(operation_id, mine) is not mine:
        return
    try:
        _run_load(_current_agent(), operation_id)
    finally:
        del _loads[operation_id]


def _run_load(agent: Agent, operation_id: str) -> None:
    command = operations.read_load(agent.client, operation_id)
    if command is not None and command.nodes[0] != agent.node:
        return  # a second delivery: it has gone on to that node
    while command is not None:
        spec = command.spec
        operation = RunningOperation(agent.client, OperationKind.LOAD, operation_id, spec.name)
        try:
            command = LoadRunner(agent, operation, command).run()
        except Exception as exc:  # the task's top: its readers wait for a final event
            _log.exception("the load of %s failed", operation.model)
            error = InternalError(f"The agent failed: {exc}")
            agent.replicas.note_failure(spec, error, _RETRY_S)
            operation.fail(operations.failure_of(error, _RETRY_S))
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


@app.task(name=names.UNLOAD_TASK, acks_late=False)  # type: ignore[untyped-decorator]
def unload_model(operation_id: str) -> None:
    """Stop this node's replicas of a model."""
    agent = _current_agent()
    command = operations.read_unload(agent.client, operation_id)
    if command is None:
        _log.warning("unload %s has no command in Redis", operation_id)
        return
    operation = RunningOperation(agent.client, OperationKind.UNLOAD, command.id, command.model)
    UnloadRunner(agent, operation, command).run()


@app.task(name=names.RESTART_AGENT_TASK, acks_late=False)  # type: ignore[untyped-decorator]
def restart_agent() -> None:
    """Restart the agent's program; its replicas keep running."""
    _current_agent().is_restarting = True
    os.kill(os.getpid(), signal.SIGTERM)


def _current_agent() -> Agent:
    assert _agent is not None, "set_agent() is called before the worker starts"
    return _agent
