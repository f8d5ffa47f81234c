"""One attempt at a job, and the events of it that go from the engine loop to the publisher."""

import threading
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from msgspec import UNSET

from shared.denylist.denylist import OutputRules
from shared.errors import LlmisError
from shared.wire.events import Timings, TokenLogprobs, Usage
from shared.wire.job import Job
from worker.sequence import Sequence, StepResult
from worker.text_parts import TextParser


@dataclass(slots=True)
class Attempt:
    """State of one attempt at a job. The comments name the thread that writes each part."""

    job: Job
    number: int
    """0 = the first attempt."""
    sequences: list[Sequence]
    lease: bytes = b""
    """The encoded lease without which no event of this attempt is appended."""
    channels: tuple[str, ...] = ()
    """Of the web processes that read the job. Set by the task thread, then by the heartbeat."""
    rules: OutputRules | None = None
    """The denylist's, for the answers. Set by the task thread before the job is submitted."""
    # engine loop
    ended: frozenset[int] = frozenset()
    """Choices that an earlier attempt has completed."""
    open_sequences: int = 0
    streaming: set[int] = field(default_factory=set)
    """Choices that have given a token in this attempt."""
    prompt_tokens: int = 0
    cached_by_prompt: dict[int, int] = field(default_factory=dict)
    """Index of a prompt's first choice → its prompt tokens that came from the KV cache. The
    other choices find there what the first one has added, which saves nothing."""
    completion_tokens: int = 0
    reasoning_tokens: dict[int, int] = field(default_factory=dict)
    """Choice index → tokens of its reasoning, if they are counted."""
    started_at: float = 0.0
    """Monotonic seconds, 0 = not started."""
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    """Of any choice. Monotonic seconds, 0 = none yet."""
    queue_s: float = 0.0
    # publisher
    next_seq: int = 0
    prompt_logprobs: dict[int, list[TokenLogprobs] | None] = field(default_factory=dict)
    """With `job.echo`: index of a prompt's first choice → log probabilities of the prompt as far
    as it is read; None = they are sent."""
    parsers: dict[int, TextParser] = field(default_factory=dict)
    """Choice index → parser of its text. The text of a choice without one is content. Made by the
    task thread before the job is submitted."""
    called: set[int] = field(default_factory=set)
    """Choices that have called a tool, the arguments of each call whole JSON."""
    echoes: list[str] = field(default_factory=list)
    """With `job.echo`: the text of each prompt."""
    is_fenced: bool = False
    """Another replica has taken the job over: events of this attempt are refused."""
    is_broken: bool = False
    """An event could not be encoded: the log has ended with the failure."""
    # the thread that ends it
    outcome: str = ""
    """"finished", or the code of the error."""
    done: threading.Event = field(default_factory=threading.Event)
    """Set when the last event is in the job's log."""

    @property
    def id(self) -> str:
        return self.job.id

    def usage(self) -> Usage:
        cached_tokens = sum(self.cached_by_prompt.values())
        reasoning = sum(self.reasoning_tokens.values()) if self.reasoning_tokens else UNSET
        return Usage(self.prompt_tokens, self.completion_tokens, cached_tokens, reasoning)

    def timings(self) -> Timings:
        if not self.started_at:
            return Timings(0.0, 0.0, 0.0)
        now = time.monotonic()
        first = self.first_token_at or now
        return Timings(self.queue_s, first - self.started_at, now - first)


@dataclass(frozen=True, slots=True)
class JobStarted:
    """The first sequence of the job has a slot."""

    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class JobEnded:
    """All choices are complete."""

    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class JobDropped:
    """Failed or cancelled: the log gets its last event."""

    error: LlmisError


class Preemption(StrEnum):
    """Why a replica stops a job before its end."""

    LEFT = "client_gone"
    """It has no reader: it waits outside of the queue until it has one again."""
    HANDED_OVER = "handed_over"
    """This replica stops: another one resumes the job."""


@dataclass(frozen=True, slots=True)
class JobPreempted:
    """Out of the engine; its log stays open."""

    reason: Preemption


Item = StepResult | JobStarted | JobEnded | JobDropped | JobPreempted
AttemptEvent = tuple[Attempt, Item]


class Emit(Protocol):
    """Takes events to the publisher; never blocks."""

    def __call__(self, events: list[AttemptEvent], /, *, is_urgent: bool = True) -> None:
        """`is_urgent`: False = only further tokens of choices that stream already."""


def parsers_of(sequences: list[Sequence]) -> dict[int, TextParser]:
    """Make a parser for each choice whose text is more than content."""
    made = {s.key[1]: s.new_parser() for s in sequences if s.new_parser is not None}
    return {index: parser for index, parser in made.items() if parser is not None}


def num_prompt_tokens(attempt: Attempt) -> int:
    """Count each prompt once, however many choices it has."""
    return sum(len(s.prompt) for s in attempt.sequences[:: attempt.job.num_choices])
