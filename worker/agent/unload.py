"""One unload operation on one node. Runs in a task thread of the agent."""

import time

from shared import names, operations
from shared.lifecycle import StopOrder, UnloadCommand
from shared.operations import Operation
from worker.agent.agent import Agent

_POLL_S = 0.1
_CHECK_S = 1.0
_LATE_REQUESTS_S = 1.5
"""Web processes learn within a second that nobody may ask for a model any more."""


class Unloading:
    def __init__(self, agent: Agent, operation: Operation, command: UnloadCommand) -> None:
        self._agent = agent
        self._fleet = agent.fleet
        self._operation = operation
        self._command = command
        self._deadline = time.monotonic() + command.grace_s
        self._checked_at = 0.0

    def run(self) -> None:
        """Stop this node's replicas of the model; the last node ends the operation.

        Ends without a word when another unload has taken over, or this one came too late:
        who waited for it was told so.
        """
        command = self._command
        replicas = self._fleet.replicas_of(command.model, with_leaving=True)
        if not self._goes_on():
            return
        if replicas and command.is_draining and not self._serve_what_waits():
            return
        grace_s = max(0.0, self._deadline - time.monotonic())
        for replica in replicas:
            self._fleet.let_go(replica, StopOrder(grace_s, "The model was unloaded."))
        while still := sum(self._fleet.get(replica.id) is not None for replica in replicas):
            done = 1 - still / (len(replicas) + 1)
            self._operation.report("stopping", done, f"{still} to stop")
            if not self._pause():
                return
        if operations.count_down(self._agent.client, command):
            self._forget()
            self._operation.finish()

    def _serve_what_waits(self) -> bool:
        self._operation.report("draining", 0.1, "requests that wait are served")
        served_at = time.monotonic() + min(_LATE_REQUESTS_S, self._command.grace_s)
        while time.monotonic() < self._deadline and (
            time.monotonic() < served_at or self._fleet.queue_length(self._command.model)
        ):
            if not self._pause():
                return False
        return True

    def _pause(self) -> bool:
        """Wait a moment; False when this operation has no business any more."""
        time.sleep(_POLL_S)
        if time.monotonic() - self._checked_at < _CHECK_S:
            return True
        return self._goes_on()

    def _goes_on(self) -> bool:
        self._checked_at = time.monotonic()
        return not self._agent.is_stopping and self._operation.is_ours()

    def _forget(self) -> None:
        """What Redis knows of a model that nobody can ask for any more."""
        if self._command.is_forgotten:
            client, model = self._agent.client, self._command.model
            # The readers of what still waits are told that the model was unloaded.
            client.delete(*names.priority_lists(model))
            client.zrem(names.LAST_USED, model)
