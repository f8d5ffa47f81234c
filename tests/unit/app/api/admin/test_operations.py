"""An operation is followed to its end, through outages of Redis and the loss of its node."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from app.api.admin import operations as followed
from shared.errors import NotFound
from shared.registry import operations
from shared.wire.operations import OperationKind, OperationProgress, OperationState

_CLIENT = redis.Redis(port=1)
"""Never asked: what Redis says is scripted."""


def _progress(state: OperationState, stage: str = "") -> OperationProgress:
    return OperationProgress(
        id="o", kind=OperationKind.LOAD, model="m", state=state, stage=stage, fraction=0.5
    )


_BEGUN = _progress(OperationState.LOADING, "begun")
_READY = _progress(OperationState.READY, "ready")
_AWAY = redis.ConnectionError("away")


class _Redis:
    """The log of one operation: each read after the first has the next of `looks`."""

    def __init__(self, looks: list[Any]) -> None:
        self.log = [_BEGUN]
        self.looks: Iterator[Any] = iter(looks)
        self.is_lost = False

    def progress(self, _client: object, _id: str, since: int = 0) -> list[OperationProgress]:
        if since == -1:
            return self.log[-1:]
        look = next(self.looks)
        if isinstance(look, Exception):
            raise look
        self.is_lost = look == "lost"
        self.log += look if isinstance(look, list) else []
        return self.log[since:]


@pytest.fixture
def follow(
    monkeypatch: pytest.MonkeyPatch, forward: Callable[[float], None]
) -> Callable[..., list[OperationProgress]]:
    """Follow an operation whose looks into Redis are these; pauses pass at once."""

    def run(*looks: Any) -> list[OperationProgress]:
        scripted = _Redis(list(looks))
        monkeypatch.setattr(operations, "progress", scripted.progress)
        monkeypatch.setattr(operations, "is_lost", lambda *_: scripted.is_lost)
        monkeypatch.setattr(followed.gevent, "sleep", forward)
        return [each for each in followed._follow(_CLIENT, "o") if each is not None]

    return run


def test_each_step_is_seen_once_and_the_end_is_the_last(
    follow: Callable[..., list[OperationProgress]],
) -> None:
    half = _progress(OperationState.LOADING, "half")
    assert follow([], [half], [], [_READY]) == [_BEGUN, half, _READY]


def test_a_short_outage_of_redis_is_bridged(follow: Callable[..., list[OperationProgress]]) -> None:
    assert follow([], _AWAY, _AWAY, [_READY]) == [_BEGUN, _READY]


def test_an_outage_that_outlasts_the_lock_is_an_error(
    follow: Callable[..., list[OperationProgress]],
) -> None:
    with pytest.raises(redis.ConnectionError):
        follow([], *[_AWAY] * 100)


def test_a_lost_operation_fails_when_its_node_gives_no_reason(
    follow: Callable[..., list[OperationProgress]],
) -> None:
    begun, last = follow([], *["lost"] * 100)
    assert begun == _BEGUN
    assert (last.state, last.message) == (OperationState.FAILED, operations.lost(_BEGUN).message)


def test_the_reason_that_a_node_gives_late_is_the_end(
    follow: Callable[..., list[OperationProgress]],
) -> None:
    failed = _progress(OperationState.FAILED)
    assert follow([], "lost", "lost", [failed]) == [_BEGUN, failed]


def test_an_operation_that_redis_does_not_know_is_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operations, "progress", lambda *_: [])
    with pytest.raises(NotFound, match="no operation 'o'"):
        followed.latest(_CLIENT, "o")
