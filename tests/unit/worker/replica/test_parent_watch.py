"""Whether a replica still has an agent, with Redis and without."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import redis

from shared import lifecycle, names
from shared.lifecycle import NodeRecord
from worker import keeper
from worker.keeper import Keeper

_ORPHAN_S = 0.1


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is not our parent."""
    monkeypatch.setattr(keeper, "_ORPHAN_S", _ORPHAN_S)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def _is_there(kept: Keeper) -> bool:
    time.sleep(2 * _ORPHAN_S)  # what was seen before has run out
    return kept.is_there()


def _announce(client: redis.Redis, pid: int) -> None:
    record = NodeRecord(
        id="n", pid=pid, versions={}, started_at=0, cpus=1, devices=[], promised_bytes=0, models=[]
    )
    client.set(names.node_key("n"), lifecycle.encode(record))


def test_an_agent_is_there_while_it_announces_its_node(
    redis_socket: str, agent: subprocess.Popen[bytes]
) -> None:
    client = redis.Redis(unix_socket_path=redis_socket)
    kept = Keeper(client, "n", agent_pid=0)
    assert not _is_there(kept)
    _announce(client, agent.pid)
    assert _is_there(kept)
    client.delete(names.node_key("n"))
    assert not _is_there(kept)


def test_without_redis_the_agent_seen_last_counts(
    redis_socket: str, agent: subprocess.Popen[bytes]
) -> None:
    client = redis.Redis(unix_socket_path=redis_socket, retry=None)
    kept = Keeper(client, "n", agent_pid=0)
    _announce(client, agent.pid)
    assert _is_there(kept)
    client.shutdown(nosave=True)
    assert _is_there(kept), "Redis is away, the agent is not"
    agent.kill()
    agent.wait()
    assert not _is_there(kept)
