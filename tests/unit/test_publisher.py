"""The publisher: numbering, joining, and a Redis that fails in the middle."""

from typing import Any

import redis

from shared import messages, names
from shared.messages import (
    Delta,
    Echo,
    Embedding,
    Finished,
    FinishReason,
    Job,
    JobKind,
    Logprob,
    Sampling,
    Started,
    Timings,
    TokenLogprobs,
    Usage,
)
from worker.engines.protocol import Sequence, StepResult
from worker.events import events_of
from worker.job_run import Emission, JobEnded, JobRun, JobStarted
from worker.publisher import Publisher


def _run(job_id: str = "j", channel: str = "c", **fields: Any) -> JobRun:
    job = Job(
        id=job_id,
        model="m",
        kind=JobKind.COMPLETION,
        reply_channel=channel,
        created_at=0.0,
        deadline_at=1.0,
        **fields,
    )
    return JobRun(job, 0, [])


def _end(run: JobRun) -> Emission:
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


class _FlakyRedis:
    """Keeps lists; breaks the given pipelines after `applied` of their commands."""

    def __init__(self, breaks: dict[int, int]) -> None:
        self.lists: dict[str, list[bytes]] = {}
        self.published: list[bytes] = []
        self.num_pipelines = 0
        self.breaks = breaks

    def pipeline(self, transaction: bool) -> "_FlakyPipeline":
        assert not transaction
        return _FlakyPipeline(self)


class _FlakyPipeline:
    def __init__(self, server: _FlakyRedis) -> None:
        self._server = server
        self._commands: list[Any] = []

    def rpush(self, key: str, payload: bytes) -> None:
        self._commands.append(lambda: self._server.lists.setdefault(key, []).append(payload))

    def llen(self, key: str) -> None:
        self._commands.append(lambda: len(self._server.lists.get(key, [])))

    def expire(self, key: str, ttl_s: int) -> None:
        self._commands.append(lambda: 1)

    def publish(self, channel: str, payload: bytes) -> None:
        self._commands.append(lambda: self._server.published.append(payload) or 1)

    def execute(self) -> list[Any]:
        number = self._server.num_pipelines
        self._server.num_pipelines += 1
        applied = self._server.breaks.get(number, len(self._commands))
        replies = [command() for command in self._commands[:applied]]
        if number in self._server.breaks:
            raise redis.ConnectionError("cut")
        return replies


def _log(server: _FlakyRedis, job_id: str) -> list[int]:
    payloads = server.lists.get(names.log_key(job_id), [])
    return [messages.decode_event(payload).seq for payload in payloads]


def test_a_pipeline_cut_anywhere_leaves_every_event_in_the_log_once() -> None:
    for applied in range(9):
        server = _FlakyRedis({0: applied, 1: 0})
        publisher = Publisher(server, job_ttl_s=10, request_timeout_s=10)  # type: ignore[arg-type]
        runs = [_run("a"), _run("b")]
        emissions: list[Emission] = []
        for run in runs:
            emissions += [(run, JobStarted(1)), (run, StepResult((run.id, 0), "x", [1])), _end(run)]
        publisher.emit(emissions)
        publisher.start()
        publisher.stop(timeout_s=5)
        assert all(run.done.is_set() for run in runs)
        assert _log(server, "a") == _log(server, "b") == [0, 1, 2], applied


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


class _Scripts:
    def register_script(self, _script: str) -> None:
        """Nothing is appended here."""


def test_logs_that_are_large_and_read_at_once_do_not_stay_long() -> None:
    publisher = Publisher(_Scripts(), job_ttl_s=600, request_timeout_s=10)  # type: ignore[arg-type]
    large = _run(echo=True, logprobs=1, prompt_logprobs=True)
    assert publisher._ttl_s(large.job) < 600
    assert publisher._ttl_s(_run(logprobs=1).job) == 600
