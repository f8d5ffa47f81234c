"""The replica process: how it ends when its engine does."""

from types import SimpleNamespace
from typing import Any

import pytest

from worker import replica, suspects
from worker.agent.managed_replica import _ERROR_PREFIX
from worker.replica import ReplicaProcess


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A replica whose engine loop has ended, and what its death does."""
    process: Any = ReplicaProcess.__new__(ReplicaProcess)
    process.codes, process.withdrawn = [], []
    monkeypatch.setattr(replica.os, "_exit", process.codes.append)
    monkeypatch.setattr(
        replica.registry, "withdraw", lambda _, name: process.withdrawn.append(name)
    )
    process.id = "r"
    process._client = _Hashes()
    process._spec = SimpleNamespace(name="m")
    process._settings = SimpleNamespace(redis_timeout_s=1.0)
    process._publisher = SimpleNamespace(stop=lambda timeout_s: None)
    process._loop = SimpleNamespace(last_words="The GPU failed (CUDA error)", suspects={})
    return process


class _Hashes:
    """Of Redis: hashes, and when they expire. Its own pipeline."""

    def __init__(self) -> None:
        self.hashes: dict[str, dict[bytes, bytes]] = {}
        self.ttl_s: dict[str, int] = {}

    def pipeline(self, transaction: bool) -> "_Hashes":
        return self

    def __enter__(self) -> "_Hashes":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self) -> None:
        pass

    def hset(self, key: str, mapping: dict[str, str]) -> None:
        made = {field.encode(): value.encode() for field, value in mapping.items()}
        self.hashes[key] = self.hashes.get(key, {}) | made

    def expire(self, key: str, ttl_s: int) -> None:
        self.ttl_s[key] = ttl_s

    def hgetall(self, key: str) -> dict[bytes, bytes]:
        return self.hashes.get(key, {})


def test_the_reason_of_the_engine_is_the_last_word_that_the_agent_reads(
    dying: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    dying._die()
    assert dying.codes == [70], "not 1: that would say that another try is of no use"
    assert dying.withdrawn == ["r"]
    assert capsys.readouterr().err == f"{_ERROR_PREFIX}The GPU failed (CUDA error)\n"
    assert not dying._client.hashes


def test_the_next_process_of_the_model_learns_of_the_suspects(dying: Any) -> None:
    dying._loop.suspects = {"a": 1, "b": 1}
    dying._die()
    dying._loop.suspects = {"b": 2}
    dying._die()
    assert dying.withdrawn == ["r", "r"]
    assert suspects.recall(dying._client, "m") == {"a": 1, "b": 2}
    assert suspects.recall(dying._client, "other") == {}
    assert list(dying._client.ttl_s.values()) == [600]
