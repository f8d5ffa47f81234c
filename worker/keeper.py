"""Whether there is an agent that would stop this process: its parent, or an heir of it."""

import os
import time

import psutil
import redis

from shared import lifecycle, names
from shared.lifecycle import NodeRecord

_ORPHAN_S = 15.0
"""A replica whose agent is gone for so long ends: nobody would ever stop it."""


class Keeper:
    """Asked by the heartbeat thread."""

    def __init__(self, client: "redis.Redis", node: str, agent_pid: int) -> None:
        """`agent_pid`: of the agent that started this process. Not its parent as it is now: that
        agent may be dead by now."""
        self._client = client
        self._node_key = names.node_key(node)
        self._agent_pid = agent_pid
        self._seen_at = time.monotonic()

    def is_there(self) -> bool:
        if self._sees_it():
            self._seen_at = time.monotonic()
        return time.monotonic() - self._seen_at < _ORPHAN_S

    def _sees_it(self) -> bool:
        if os.getppid() == self._agent_pid:
            return True
        try:
            record = lifecycle.decode(self._client.get(self._node_key), NodeRecord)
        except redis.RedisError:
            # Redis is away, which says nothing of the agent: it runs on this host.
            return _runs(self._agent_pid)
        if record is None:
            return False
        self._agent_pid = record.pid
        return True


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
