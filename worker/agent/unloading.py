"""One unload operation on one node. Runs in a task thread of the agent."""

import time

from shared import names, operations
from shared.lifecycle import StopOrder, UnloadCommand
from shared.operations import Operation
from worker.agent.agent import Agent

_POLL_S = 0.1
_RENEW_S = 1.0
_LATE_REQUESTS_S = 1.5
"""Web processes learn within a second that a model is no longer asked for."""


def unload(agent: Agent, operation: Operation, command: UnloadCommand) -> None:
    """Stop this node's replicas of a model; the last node ends the operation."""
    if not operation.is_ours():
        return  # it came too late: who waited for it was told so
    replicas = agent.replicas_of(command.model)
    deadline = time.monotonic() + command.grace_s
    renewed_at = 0.0

    def wait() -> None:
        nonlocal renewed_at
        if time.monotonic() - renewed_at > _RENEW_S:
            operation.is_ours()
            renewed_at = time.monotonic()
        time.sleep(_POLL_S)

    if replicas and command.is_draining:
        operation.report("draining", 0.1, "requests that wait are served")
        served_at = time.monotonic() + min(_LATE_REQUESTS_S, command.grace_s)
        while time.monotonic() < served_at or agent.queue_length(command.model):
            if time.monotonic() >= deadline:
                break
            wait()
    grace_s = max(0.0, deadline - time.monotonic())
    for replica in replicas:
        agent.let_go(replica, StopOrder(grace_s, "The model was unloaded."))
    while still := sum(agent.get(replica.id) is not None for replica in replicas):
        operation.report("stopping", 1 - still / (len(replicas) + 1), f"{still} replicas to stop")
        while sum(agent.get(replica.id) is not None for replica in replicas) == still:
            wait()
    if operations.count_down(agent.client, command):
        if command.is_forgotten:
            # The readers of what still waits are told that the model was unloaded.
            agent.client.delete(*names.priority_lists(command.model))
            agent.client.zrem(names.LAST_USED, command.model)
        operation.finish()
