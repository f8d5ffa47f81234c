"""A node for tests of the agent's parts: its settings, and replicas that only wait.

The processes have a replica's command line and environment, but no engine: `python -m
worker.replica` is found in the working directory, where a module that sleeps takes its place.
"""

import signal
from pathlib import Path
from typing import Any

import pytest

from shared.settings.fields import Settings
from shared.wire.records import ReplicaRecord, ReplicaState
from worker.agent.managed_replica import ManagedReplica
from worker.agent.replicas import Replicas

_SLEEP = "import time; print('up', flush=True); time.sleep(600)"


def work_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `folder` the working directory, in which `python -m worker.replica` sleeps."""
    (folder / "worker").mkdir()
    (folder / "worker" / "__init__.py").write_text("")
    (folder / "worker" / "replica.py").write_text(_SLEEP)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONPATH", raising=False)


def settings(folder: Path, redis_socket: str, **fields: Any) -> Settings:
    url = f"unix://{redis_socket}"
    values = {"memory_reserve_bytes": 0} | fields
    return Settings(redis_url=url, node_name="here", data_dir=str(folder / "var"), **values)


def kill_all(replicas: Replicas) -> None:
    for replica in replicas.all():
        replica.send(signal.SIGKILL)
        if replica.process is not None:
            replica.process.wait(10)


def record(replica: ManagedReplica, **fields: Any) -> ReplicaRecord:
    """What a ready replica writes, with these fields changed."""
    texts = dict.fromkeys(("engine", "device", "stage"), "")
    counts = ("pid", "slots", "busy_slots", "waiting_sequences", "context_length", "steps")
    amounts = ("fraction", "step_age_s", "generated_tokens", "tokens_per_s", "memory_bytes")
    more = ("mapped_bytes", "estimated_bytes", "started_at")
    numbers = dict.fromkeys((*counts, *amounts, *more), 0)
    values: dict[str, Any] = {**texts, **numbers, "versions": {}, "capabilities": []}
    values |= {"state": ReplicaState.READY, "node": "here"} | fields
    return ReplicaRecord(
        id=replica.assignment.replica_id, model=replica.model, assignment_id=replica.id, **values
    )
