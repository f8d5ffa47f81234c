"""One unload operation on one node. Runs in a task thread of the agent."""

import time

from shared import names
from shared.registry import operations
from shared.registry.running_operation import RunningOperation
from shared.wire.operations import UnloadCommand
from shared.wire.records import StopOrder
from worker.agent.agent import Agent

_POLL_S = 0.1
_CHECK_S = 1.0
_LATE_REQUESTS_S = 1.5
"""Requests may still be queued for this long: web processes see an unload within a second."""


class UnloadRunner:
    def __init__(self, agent: Agent, operation: RunningOperation, command: UnloadCommand) -> None:
        self._agent = agent
        self._replicas = agent.replicas
        self._operation = operation
        self._command = command
        self._deadline = time.monotonic() + command.grace_s
        self._checked_at = 0.0

    def run(self) -> None:
        """Stop this node's replicas of the model; the last node ends the operation.

        Returns without a final event when the operation has lost its lock to another unload:
        the readers see it as lost.
        """
        command = self._command
        replicas = self._replicas.replicas_of(command.model, with_leaving=True)
        if not self._is_current():
            return
        if replicas and command.is_draining and not self._drain_queue():
            return
        grace_s = max(0.0, self._deadline - time.monotonic())
        for replica in replicas:
            self._replicas.stop(replica, StopOrder(grace_s, "The model was unloaded."))
        while still := sum(self._replicas.get(replica.id) is not None for replica in replicas):
            done = 1 - still / (len(replicas) + 1)
            self._operation.report("stopping", done, f"{still} to stop")
            if not self._pause():
                return
        if operations.count_down(self._agent.client, command):
            self._forget()
            self._operation.finish()

    def _drain_queue(self) -> bool:
        """Wait until the queue is empty or the grace time is over; False when superseded."""
        self._operation.report("draining", 0.1, "waiting requests are served")
        served_at = time.monotonic() + min(_LATE_REQUESTS_S, self._command.grace_s)
        while time.monotonic() < self._deadline and (
            time.monotonic() < served_at or self._replicas.queue_length(self._command.model)
        ):
            if not self._pause():
                return False
        return True

    def _pause(self) -> bool:
        """Wait for one poll; False when another operation has superseded this one."""
        time.sleep(_POLL_S)
        if time.monotonic() - self._checked_at < _CHECK_S:
            return True
        return self._is_current()

    def _is_current(self) -> bool:
        """Whether the operation still holds its lock, which is renewed; False at a shutdown."""
        self._checked_at = time.monotonic()
        return not self._agent.is_stopping and self._operation.renew()

    def _forget(self) -> None:
        """Delete the queue and the last use of a model that is gone from the catalog."""
        if self._command.is_forgotten:
            client, model = self._agent.client, self._command.model
            # The web tier tells the readers of waiting jobs that the model was unloaded.
            client.delete(*names.priority_lists(model))
            client.zrem(names.LAST_USED, model)
