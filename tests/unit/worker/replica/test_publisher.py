"""The publisher: numbering, joining, and a Redis that fails in the middle."""

from collections.abc import Callable
from typing import Any

import pytest
import redis

from shared import names
from shared.wire import codec
from shared.wire.events import (
    Delta,
    Echo,
    Embedding,
    Failed,
    Finished,
    FinishReason,
    Logprob,
    Started,
    Timings,
    TokenLogprobs,
    Usage,
)
from shared.wire.job import Sampling
from tests.conftest import wait_for
from tests.support.jobs import completion_job
from worker.replica.attempt import (
    Attempt,
    AttemptEvent,
    JobEnded,
    JobPreempted,
    JobStarted,
    Preemption,
)
from worker.replica.event_builder import events_of
from worker.replica.publisher import Publisher
from worker.sequence import Sequence, StepResult


def _run(job_id: str = "j", channel: str = "c", **fields: Any) -> Attempt:
    job = completion_job(id=job_id, **fields)
    return Attempt(job, 0, [], channels=(channel,))


def _end(run: Attempt) -> AttemptEvent:
    return run, JobEnded(Usage(1, 2), Timings(0, 0, 0))


def test_events_are_numbered_without_holes_and_text_of_a_choice_is_joined() -> None:
    run = _run()
    events = events_of(
        [
            (run, JobStarted(3)),
            (run, StepResult(("j", 0), "a", [1])),
            (run, StepResult(("j", 1), "x", [9])),
            (run, StepResult(("j", 0), "b", [2], FinishReason.STOP)),
            (run, StepResult(("j", 1), "y", [8], FinishReason.LENGTH)),
            _end(run),
        ]
    )
    assert [event for _, event in events] == [
        Started(0, 0, 3),
        Delta(1, 0, 0, "ab", [1, 2], FinishReason.STOP),
        Delta(2, 0, 1, "xy", [9, 8], FinishReason.LENGTH),
        Finished(3, 0, Usage(1, 2), Timings(0, 0, 0)),
    ]


class _FlakyConnection(redis.UnixDomainSocketConnection):
    """Loses the connection in its first calls: before the server has them, or after."""

    num_losses = 0
    is_applied = True
    _is_asked = False

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        self._is_asked = b"EVALSHA" in command[0]
        if self._is_asked and self.num_losses and not self.is_applied:
            self._lose()
        super().send_packed_command(command, check_health)

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        reply = super().read_response(*arguments, **options)
        if self._is_asked and self.num_losses:
            self._lose()
        return reply

    def _lose(self) -> None:
        type(self).num_losses -= 1
        self.disconnect()
        raise redis.ConnectionError("cut")


def _flaky(redis_socket: str, *, is_applied: bool, num_losses: int = 3) -> redis.Redis:
    """More losses than one call of the script outlasts."""
    fields = {"num_losses": num_losses, "is_applied": is_applied}
    flaky = type("_Flaky", (_FlakyConnection,), fields)
    return redis.Redis(
        connection_pool=redis.ConnectionPool(connection_class=flaky, path=redis_socket)
    )


def _log(server: redis.Redis, job_id: str) -> list[int]:
    payloads: Any = server.lrange(names.log_key(job_id), 0, -1)
    return [codec.decode_event(payload).seq for payload in payloads]


def _publish(publisher: Publisher, runs: list[Attempt]) -> None:
    emissions: list[AttemptEvent] = []
    for run in runs:
        emissions += [(run, JobStarted(1)), (run, StepResult((run.id, 0), "x", [1])), _end(run)]
    publisher.emit(emissions)
    publisher.start()
    publisher.stop(timeout_s=60)


@pytest.mark.parametrize("is_applied", [True, False])
def test_a_connection_that_is_cut_leaves_every_event_in_the_log_once(
    redis_socket: str, is_applied: bool
) -> None:
    server = _flaky(redis_socket, is_applied=is_applied)
    runs = [_run("a"), _run("b")]
    _publish(Publisher(server, job_ttl_s=10, request_timeout_s=10), runs)
    assert all(run.done.is_set() for run in runs)
    assert _log(server, "a") == _log(server, "b") == [0, 1, 2]


def test_a_replica_that_lost_a_job_cannot_write_into_its_log(redis_socket: str) -> None:
    """Nor publish: its events would be taken for those of the next attempt."""
    server = redis.Redis(unix_socket_path=redis_socket)
    listener = server.pubsub()
    listener.subscribe("c")
    listener.get_message(timeout=60)
    mine, lost = _run("mine"), _run("lost", channel="d")
    mine.lease, lost.lease = b"me", b"me"
    server.set(names.lease_key("mine"), b"me")
    server.set(names.lease_key("lost"), b"another")
    fenced: list[str] = []
    publisher = Publisher(server, job_ttl_s=10, request_timeout_s=10)
    publisher.on_dropped = lambda job_id, _: fenced.append(job_id)
    _publish(publisher, [mine, lost])
    assert (_log(server, "mine"), _log(server, "lost")) == ([0, 1, 2], [])
    assert fenced == ["lost"] and lost.is_fenced and lost.done.is_set()
    message = listener.get_message(timeout=60)
    assert message is not None
    heard = codec.decode_hub_message(message["data"])
    assert {event.job_id for event in heard} == {"mine"}
    listener.close()


def test_a_replica_that_lost_a_job_during_an_outage_is_fenced(redis_socket: str) -> None:
    """The events of the next attempt are in the log, at the numbers of its own."""
    server = _flaky(redis_socket, is_applied=False)
    run = _run("lost")
    run.lease = b"me"
    server.set(names.lease_key("lost"), b"another")
    server.rpush(names.log_key("lost"), b"1", b"2", b"3")
    _publish(Publisher(server, job_ttl_s=10, request_timeout_s=10), [run])
    assert run.is_fenced
    assert server.llen(names.log_key("lost")) == 3


def test_an_event_that_cannot_be_encoded_fails_its_job_alone(
    redis_socket: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = redis.Redis(unix_socket_path=redis_socket)
    bad, good = _run("bad"), _run("good")
    publisher = Publisher(server, job_ttl_s=10, request_timeout_s=10)
    dropped: list[str] = []
    publisher.on_dropped = lambda job_id, _: dropped.append(job_id)
    bad_step = StepResult(("bad", 0), "\ud800", [1])
    publisher.send(events_of([(bad, JobStarted(1)), (good, JobStarted(1)), (bad, bad_step)]))
    _publish(publisher, [bad, good])
    assert not publisher.is_wedged
    assert bad.done.is_set() and good.done.is_set()
    assert dropped == ["bad"] and bad.outcome == "server_error"
    assert _log(server, "good") == [0, 1, 2, 3]
    payloads: Any = server.lrange(names.log_key("bad"), 0, -1)
    first, last = map(codec.decode_event, payloads)
    assert first == Started(0, 0, 1)
    assert isinstance(last, Failed) and (last.seq, last.status) == (1, 500)
    assert any(record.exc_info for record in caplog.records)


def test_an_embedding_is_an_event_of_its_own() -> None:
    run = _run()
    run.sequences.append(Sequence(("j", 0), [1] * 600, 0, Sampling()))
    vector = StepResult(("j", 0), finish_reason=FinishReason.STOP, embedding=b"\0\0\x80?")
    partial = StepResult(("j", 0), prefilled_tokens=512)
    events = events_of([(run, partial), (run, vector)])
    assert [event for _, event in events] == [Embedding(0, 0, 0, b"\0\0\x80?")]


def test_a_prompt_is_echoed_once_before_its_first_choice() -> None:
    run = _run(num_choices=2, prompts=["a", "b"], echo=True)
    run.echoes = ["a", "b"]
    scored = [TokenLogprobs(Logprob(5, -1.0, b"a"), [])] * 2
    events = events_of(
        [
            (run, StepResult(("j", 1), "y", [2])),
            (run, StepResult(("j", 0), prefilled_tokens=1, prompt_logprobs=scored[:1])),
            (run, StepResult(("j", 2), "z", [3])),
            (run, StepResult(("j", 0), "x", [1], prompt_logprobs=scored[1:])),
        ]
    )
    events += events_of([(run, StepResult(("j", i), "-", [4])) for i in range(4)])
    found = [event for _, event in events]
    assert [event.seq for event in found] == list(range(9))
    echoes = [event for event in found if isinstance(event, Echo)]
    assert echoes == [Echo(1, 0, 0, "a", scored), Echo(3, 0, 2, "b")]
    assert [event.index for event in found] == [1, 0, 0, 2, 2, 0, 1, 2, 3]  # type: ignore[union-attr]


def test_logs_that_are_large_and_read_at_once_do_not_stay_long() -> None:
    publisher = Publisher(redis.Redis(), job_ttl_s=600, request_timeout_s=10)
    large = _run(echo=True, logprobs=1, prompt_logprobs=True)
    assert publisher._ttl_s(large.job) < 600
    assert publisher._ttl_s(_run(logprobs=1).job) == 600


def test_further_tokens_wait_for_the_pace_and_an_end_does_not(redis_socket: str) -> None:
    server, run = redis.Redis(unix_socket_path=redis_socket), _run("j")
    publisher = Publisher(server, job_ttl_s=10, request_timeout_s=10, pace_s=600.0)
    publisher.start()
    publisher.emit([(run, JobStarted(1))])
    wait_for(lambda: _log(server, "j") == [0], "the first round is over")
    for token in range(5):
        publisher.emit([(run, StepResult(("j", 0), "x", [token]))], is_urgent=False)
    publisher.emit([_end(run)])
    assert run.done.wait(60)
    publisher.stop(timeout_s=60)
    payloads: Any = server.lrange(names.log_key("j"), 0, -1)
    assert codec.decode_event(payloads[1]) == Delta(1, 0, 0, "xxxxx", [0, 1, 2, 3, 4])
    assert len(payloads) == 3


def test_an_engine_slower_than_the_pace_is_not_held_back(
    redis_socket: str, forward: Callable[[float], None]
) -> None:
    server, run = redis.Redis(unix_socket_path=redis_socket), _run("j")
    publisher = Publisher(server, job_ttl_s=10, request_timeout_s=10, pace_s=600.0)
    publisher.emit([(run, JobStarted(1))])
    assert publisher._publish_round()
    forward(601.0)
    publisher.emit([(run, StepResult(("j", 0), "x", [1]))], is_urgent=False)
    assert publisher._publish_round()
    assert _log(server, "j") == [0, 1]


def test_a_preemption_has_no_event() -> None:
    run = _run()
    events = events_of(
        [(run, StepResult(("j", 0), "a", [1])), (run, JobPreempted(Preemption.LEFT))]
    )
    assert [event for _, event in events] == [Delta(0, 0, 0, "a", [1])]
