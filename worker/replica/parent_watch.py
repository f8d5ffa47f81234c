"""Watches for the agent that would stop this process: its parent, or a later agent of the node."""

import logging
import os
import time
from collections.abc import Callable

import psutil
import redis

from shared import names
from shared.wire import codec
from shared.wire.records import NodeRecord

_log = logging.getLogger(__name__)
_ORPHAN_S = 15.0
"""A replica whose agent is gone for so long stops: otherwise it would run for ever."""


class ParentWatch:
    """Used by one thread."""

    def __init__(
        self, client: "redis.Redis", node: str, agent_pid: int, on_orphaned: Callable[[], None]
    ) -> None:
        """`agent_pid`: of the agent that started this process, which may be dead by now. Its
        parent at present may be another process. `on_orphaned` is called once."""
        self._client = client
        self._node_key = names.node_key(node)
        self._agent_pid = agent_pid
        self._on_orphaned = on_orphaned
        self._is_orphaned = False
        self._seen_at = time.monotonic()

    def check(self) -> None:
        """To be called about twice a second."""
        if self._has_agent():
            self._seen_at = time.monotonic()
        elif not self._is_orphaned and time.monotonic() - self._seen_at >= _ORPHAN_S:
            _log.warning("the replica has no agent any more, it stops")
            self._is_orphaned = True
            self._on_orphaned()

    def _has_agent(self) -> bool:
        if os.getppid() == self._agent_pid:
            return True
        try:
            record = codec.decode(self._client.get(self._node_key), NodeRecord)
        except redis.RedisError:
            # Without Redis the record is unknown; the agent runs on this host.
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
