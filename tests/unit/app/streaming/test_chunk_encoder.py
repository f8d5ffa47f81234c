"""A reader whose connection breaks anywhere comes back and has the same answer."""

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from openai._streaming import SSEDecoder

from app.events.event_id import EventId, parse_event_id
from app.events.job_stream import JobStream
from app.streaming import sse
from app.streaming.chunk_encoder import DONE, ChunkEncoder, EncodedChunk
from shared.errors import EngineError, InvalidRequest
from shared.wire import codec
from shared.wire.events import (
    Delta,
    Echo,
    Event,
    Failed,
    Finished,
    FinishReason,
    Logprob,
    PrefillProgress,
    Started,
    Timings,
    TokenLogprobs,
    ToolCallDelta,
    Usage,
    join,
)
from shared.wire.job import AnswerOptions, Job, JobKind, without_request
from shared.wire.operations import OperationKind, OperationProgress, OperationState
from tests.support.chat_jobs import chat_job

_END = (Usage(3, 9), Timings(0.0, 0.1, 0.2))


def _token(text: str) -> TokenLogprobs:
    chosen = Logprob(ord(text[-1]), -0.5, text.encode())
    return TokenLogprobs(chosen, [chosen])


def _job(kind: JobKind, **fields: Any) -> Job:
    return chat_job(id="req-7.a_b", kind=kind, created_at=12.5, **fields)


def _numbered(*events: Event) -> list[Event]:
    return [msgspec.structs.replace(event, seq=seq) for seq, event in enumerate(events)]


def _chat() -> tuple[Job, list[Event]]:
    options = AnswerOptions(wants_usage=True, wants_logprobs=True, num_wanted=2)
    job = _job(JobKind.CHAT, num_choices=2, logprobs=1, answer=options)
    call = [ToolCallDelta(0, "call_1", "set", ""), ToolCallDelta(0, arguments='{"o')]
    return job, _numbered(
        Started(0, 0, 3),
        Delta(0, 0, 0, "", [1], reasoning="so", logprobs=[_token("so")]),
        Delta(0, 0, 1, "a", [2], logprobs=[_token("a")]),
        Delta(0, 0, 0, "b", [3], reasoning=" be", logprobs=[_token(" be")]),
        Delta(0, 0, 0, "c", [4], tool_calls=call, logprobs=[_token("c")]),
        Delta(0, 0, 0, "", [5], tool_calls=[ToolCallDelta(0, arguments='n"}')]),
        Delta(0, 0, 1, "", [6], logprobs=[_token("held")]),
        Delta(0, 0, 0, "", [7], FinishReason.TOOL_CALLS,
              tool_calls=[ToolCallDelta(1, "call_2", "get", "{}")]),
        Delta(0, 0, 1, "é!", [8], FinishReason.STOP, logprobs=[_token("é"), _token("!")]),
        Finished(0, 0, *_END),
    )  # fmt: skip


def _completion() -> tuple[Job, list[Event]]:
    """Two prompts with two choices each; the second prompt is echoed late."""
    job = _job(JobKind.COMPLETION, num_choices=2, prompts=["x é", "y"], logprobs=1, echo=True,
               prompt_logprobs=True,
               answer=AnswerOptions(wants_logprobs=True, num_wanted=2))  # fmt: skip
    return job, _numbered(
        Started(0, 0, 3),
        Delta(0, 0, 1, " u", [1], logprobs=[_token(" u")]),
        Echo(0, 0, 0, "x é", [_token("x"), _token(" é")]),
        Delta(0, 0, 0, " v", [2], logprobs=[_token(" v")]),
        Delta(0, 0, 3, " m", [3], logprobs=[_token(" m")]),
        Delta(0, 0, 2, " n", [4], logprobs=[_token(" n")]),
        Delta(0, 0, 3, " o", [5], logprobs=[_token(" o")]),
        Echo(0, 0, 2, "y", [_token("y")]),
        Delta(0, 0, 0, " w", [6], FinishReason.STOP, logprobs=[_token(" w")]),
        Delta(0, 0, 3, "", [7], FinishReason.LENGTH),
        Delta(0, 0, 1, " z", [8], FinishReason.STOP, logprobs=[_token(" z")]),
        Delta(0, 0, 2, " q", [9], FinishReason.STOP, logprobs=[_token(" q")]),
        Finished(0, 0, *_END),
    )


_SCRIPTS = {"chat": _chat, "completion": _completion}


class _Log:
    """The job's log in Redis, as much as a stream uses of it."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events

    def lrange(self, _key: str, first: int, last: int) -> list[bytes]:
        end = len(self._events) if last == -1 else last + 1
        return [codec.encode_event(event) for event in self._events[first:end]]


def _batches(events: list[Event], rng: random.Random) -> Iterator[list[Event]]:
    """The events as some reader gets them."""
    while events:
        size = min(rng.choice([1, 1, 2, 3, 5, 13]), len(events))
        yield join(events[:size])
        events = events[size:]


def _read(
    job: Job, log: list[Event], rng: random.Random, at: EventId | None = None
) -> list[EncodedChunk]:
    """All that a reader is sent who has the answer as far as `at`."""
    stream, encoder = JobStream(job.id, _Log(log)), ChunkEncoder(job)  # type: ignore[arg-type]
    pieces = encoder.begin(stream, at)
    seen = max(0, encoder.position.num_steps + encoder.position.num_joined - 1)
    for events in _batches(log[seen:], rng):
        pieces += encoder.of(events)
    return pieces


def _payloads(pieces: list[EncodedChunk]) -> list[bytes]:
    return [sse.event(piece.chunk) for piece in pieces]


def _gains(pieces: list[EncodedChunk]) -> dict[tuple[int, str], Any]:
    """What the choices add up to, whatever pieces it came in."""
    gains: dict[tuple[int, str], Any] = {}

    def add(index: int, name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                add(index, f"{name}.{key}", part)
        elif isinstance(value, list):
            gains.setdefault((index, name), []).extend(value)
        elif value is not None:
            gains[index, name] = gains.get((index, name), "") + str(value)

    for piece in pieces:
        chunk = {} if piece.chunk is DONE else msgspec.to_builtins(piece.chunk)
        for choice in chunk.get("choices", []):
            calls = choice.get("delta", {}).pop("tool_calls", [])
            for call in calls:
                add(choice["index"], f"call{call.pop('index')}", call)
            index = choice.pop("index")
            add(index, "", choice)
    return gains


@pytest.mark.parametrize("script", _SCRIPTS)
@pytest.mark.parametrize("seed", range(20))
def test_a_stream_cut_behind_any_chunk_goes_on_with_the_next(script: str, seed: int) -> None:
    rng = random.Random(seed)
    job, log = _SCRIPTS[script]()
    whole = _read(job, log, rng)
    assert whole[-1].chunk is DONE
    assert len({piece.event_id for piece in whole}) == len(whole), "no id stands for two places"
    later = without_request(job)
    for num_read, last in enumerate(whole, 1):
        at = parse_event_id(str(last.event_id))
        rest = _read(rng.choice([job, later]), log, rng, at)
        if last.event_id == whole[-1].event_id:
            assert _payloads(rest) == [b"data: [DONE]\n\n"], "whoever has the end gets it again"
            continue
        # The chunks of the broken write are the same to the byte, those behind it add up.
        num_same = 0
        if last.event_id.num_joined:
            ends = (i for i, p in enumerate(whole) if i >= num_read and not p.event_id.num_joined)
            num_same = next(ends) + 1 - num_read
        assert _payloads(rest[:num_same]) == _payloads(whole[num_read : num_read + num_same])
        assert _gains(whole[:num_read] + rest) == _gains(whole)
        assert rest[-1].chunk is DONE
        assert rest[-1].finished == log[-1]


@pytest.mark.parametrize("script", _SCRIPTS)
def test_it_may_be_cut_again_and_again(script: str) -> None:
    rng = random.Random(1)
    job, log = _SCRIPTS[script]()
    whole = _read(job, log, rng)
    for _ in range(30):
        got: list[EncodedChunk] = []
        at = None
        while not got or got[-1].chunk is not DONE:
            rest = _read(job, log, rng, at)
            got += rest[: rng.randint(1, 3)]
            at = got[-1].event_id
        assert _gains(got) == _gains(whole)


def test_the_same_batches_give_the_same_bytes() -> None:
    for job, log in (script() for script in _SCRIPTS.values()):
        first, second = (
            sse.events(_read(job_again, log, random.Random(3)))
            for job_again in (job, without_request(job))
        )
        assert first == second
        assert b'"created":12,' in first


def test_progress_of_the_prefill_is_a_step_without_a_chunk() -> None:
    job = chat_job()
    encoder = ChunkEncoder(job)
    stream = JobStream(job.id, _Log([]))  # type: ignore[arg-type]
    encoder.begin(stream, None)
    assert encoder.of([Started(0, 0, 900), PrefillProgress(1, 0, 512, 900)]) == []
    assert encoder.position == EventId(job.id, 3), "a later resume skips both events"
    (chunk,) = encoder.of([Delta(2, 0, 0, "a", [1])])
    assert chunk.event_id == EventId(job.id, 4)


def test_comments_have_no_id_and_no_blank_line() -> None:
    load = OperationProgress(
        id="o",
        kind=OperationKind.LOAD,
        model="m",
        state=OperationState.LOADING,
        stage="weights",
        fraction=0.5,
    )
    assert sse.prefill(0.454) == b": reading the prompt 45%\n"
    assert sse.prefill(1.0) == b": reading the prompt 100%\n"
    assert sse.loading(load) == b": loading m: weights 50%\n"
    assert sse.keepalive(None) == b": waiting\n"
    assert sse.keepalive(0) == b": queue position 0\n"


def test_the_openai_package_reads_ids_and_overlooks_comments() -> None:
    stream = b"".join(
        [
            sse.keepalive(None),
            sse.event({"n": 1}, EventId("r", 1)),
            sse.keepalive(None),
            sse.prefill(0.5),
            sse.event({"n": 2}, EventId("r", 2)),
            sse.keepalive(None),
            sse.event(DONE, EventId("r", 3)),
        ]
    )
    events = list(SSEDecoder().iter_bytes(iter([stream])))
    assert [(e.id, e.data) for e in events] == [
        ("r:1", '{"n":1}'), ("r:2", '{"n":2}'), ("r:2", "[DONE]")
    ]  # fmt: skip


def test_the_end_has_no_id() -> None:
    """Some clients compare its event as a whole."""
    assert sse.event(DONE, EventId("r", 3)) == b"data: [DONE]\n\n"


def test_no_character_of_a_payload_ends_a_line() -> None:
    """Clients split with `str.splitlines`, which knows ten characters that end a line."""
    text = "".join(map(chr, range(0xD800))) + "\ue000\U0001f600"
    event = sse.event({"text": text}, EventId("r", 1))
    first, data, blank = event.decode().splitlines()
    assert (first, blank) == ("id: r:1", "")
    assert msgspec.json.decode(data.removeprefix("data: ")) == {"text": text}


@pytest.mark.parametrize(
    "text",
    ["", "req-7", "req-7:", ":1", "req-7:-1", "req-7:1+", "req-7:1+2", "req-7:1+0.0", "req-7:1+2.0",
     "req-7:0+2.1", "re q:1", "req-7:1 ", "req-7:1\n", "req-7:١", "req-7:1234567890"],
)  # fmt: skip
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_event_id(text)


@pytest.mark.parametrize("place", ["12", "999999999", "10+2.1", "2+1.9", "4+2.4"])
def test_a_place_that_the_answer_does_not_have_is_refused(place: str) -> None:
    job, log = _chat()
    with pytest.raises(InvalidRequest, match="There is no event"):
        _read(job, log, random.Random(0), parse_event_id(f"{job.id}:{place}"))


def test_a_failure_is_told_again_to_whoever_has_all_before_it() -> None:
    job, log = _chat()
    log = [*log[:3], Failed(3, 0, 500, "engine_error", "It broke.")]
    with pytest.raises(EngineError, match="It broke"):
        _read(job, log, random.Random(0), EventId(job.id, 5))


def test_the_newest_progress_of_the_prefill_counts_in_a_job_with_one_sequence() -> None:
    batch: list[Event] = [
        Started(0, 0, 8),
        PrefillProgress(1, 0, 2, 8),
        PrefillProgress(2, 0, 4, 8),
    ]
    for job in (_job(JobKind.CHAT), _job(JobKind.COMPLETION, prompts=["a"])):
        encoder = ChunkEncoder(job)
        assert encoder.prefill_of(batch) == 0.5
        assert encoder.prefill_of(batch[:1]) is None
        assert encoder.prefill_of([]) is None
    for several in ({"num_choices": 2}, {"prompts": ["a", "b"]}):
        assert ChunkEncoder(_job(JobKind.COMPLETION, **several)).prefill_of(batch) is None
