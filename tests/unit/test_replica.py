"""The replica process: how it ends when its engine does."""

from types import SimpleNamespace
from typing import Any

import pytest

from worker import replica
from worker.agent.managed_replica import _ERROR_PREFIX
from worker.replica import ReplicaProcess


def test_the_reason_of_the_engine_is_the_last_word_that_the_agent_reads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    withdrawn: list[str] = []
    monkeypatch.setattr(replica.os, "_exit", codes.append)
    monkeypatch.setattr(replica.registry, "withdraw", lambda _, name: withdrawn.append(name))
    process: Any = ReplicaProcess.__new__(ReplicaProcess)
    process.id = "r"
    process._client = None
    process._settings = SimpleNamespace(redis_timeout_s=1.0)
    process._publisher = SimpleNamespace(stop=lambda timeout_s: None)
    process._loop = SimpleNamespace(last_words="The GPU failed (CUDA error)", suspects={})
    process._die()
    assert codes == [70], "not 1: that would say that another try is of no use"
    assert withdrawn == ["r"]
    assert capsys.readouterr().err == f"{_ERROR_PREFIX}The GPU failed (CUDA error)\n"
