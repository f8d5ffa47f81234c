"""Whether a replica still has an agent, with Redis and without."""

import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import redis

from shared import names
from shared.wire import codec
from shared.wire.records import NodeRecord
from worker.replica import parent_watch
from worker.replica.parent_watch import ParentWatch


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is not our parent."""
    monkeypatch.setattr(parent_watch, "time", SimpleNamespace(monotonic=lambda: _clock_s))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


_clock_s = 1000.0


class _Watch:
    """A watch, and whether the process was orphaned."""

    def __init__(self, client: redis.Redis) -> None:
        self.num_orphaned = 0
        self._watch = ParentWatch(client, "n", 0, self._count)

    def _count(self) -> None:
        self.num_orphaned += 1

    def is_orphaned(self) -> bool:
        global _clock_s
        _clock_s += 2 * parent_watch._ORPHAN_S  # an agent that was seen before is forgotten
        self._watch.check()
        return bool(self.num_orphaned)


def _announce(client: redis.Redis, pid: int) -> None:
    record = NodeRecord(
        id="n", pid=pid, versions={}, started_at=0, cpus=1, devices=[], promised_bytes=0, models=[]
    )
    client.set(names.node_key("n"), codec.encode(record))


def test_an_agent_is_there_while_it_announces_its_node(
    redis_socket: str, agent: subprocess.Popen[bytes]
) -> None:
    client = redis.Redis(unix_socket_path=redis_socket)
    watch = _Watch(client)
    _announce(client, agent.pid)
    assert not watch.is_orphaned()
    client.delete(names.node_key("n"))
    assert watch.is_orphaned()
    assert watch.is_orphaned()
    assert watch.num_orphaned == 1, "the process is stopped once"


def test_without_redis_the_agent_seen_last_counts(
    redis_socket: str, agent: subprocess.Popen[bytes]
) -> None:
    client = redis.Redis(unix_socket_path=redis_socket, retry=None)
    watch = _Watch(client)
    _announce(client, agent.pid)
    assert not watch.is_orphaned()
    client.shutdown(nosave=True)
    assert not watch.is_orphaned(), "Redis is away, the agent is not"
    agent.kill()
    agent.wait()
    assert watch.is_orphaned()
