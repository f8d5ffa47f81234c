"""A job while this replica runs it, and what the engine loop tells the publisher about it."""

import threading
import time
from dataclasses import dataclass, field
from enum import StrEnum

from shared.denylist import OutputRules
from shared.errors import LlmisError
from shared.messages import Job, Timings, TokenLogprobs, Usage
from worker.chat.parser import OutputParser
from worker.engines.protocol import Sequence, StepResult


@dataclass(slots=True)
class JobRun:
    """State of one attempt at a job. The comments name the thread that writes each part."""

    job: Job
    attempt: int
    sequences: list[Sequence]
    claim: bytes = b""
    """What the job's claim has to be for an event of this attempt to count."""
    channels: tuple[str, ...] = ()
    """Of the web processes that read the job. The task thread sets it, then the heartbeat."""
    rules: OutputRules | None = None
    """Of the denylist, for its answers. The task thread sets it before the job is submitted."""
    # engine loop
    ended: frozenset[int] = frozenset()
    """Choices that an earlier attempt has brought to their ends."""
    open_sequences: int = 0
    prompt_tokens: int = 0
    cached_by_prompt: dict[int, int] = field(default_factory=dict)
    """Index of a prompt's first choice → its prompt tokens that came from the KV cache. The
    other choices find there what the first one has put in: that is no saving."""
    completion_tokens: int = 0
    started_at: float = 0.0
    """Monotonic seconds, 0 = not started."""
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    """Of any choice. Monotonic seconds, 0 = none yet."""
    queue_s: float = 0.0
    # publisher
    next_seq: int = 0
    prompt_logprobs: dict[int, list[TokenLogprobs] | None] = field(default_factory=dict)
    """With `job.echo`: index of a prompt's first choice → of the prompt as far as it is read;
    None = it is sent."""
    parsers: dict[int, OutputParser] = field(default_factory=dict)
    """Choice index → what sorts its text. Choices without one are all content. Made by the
    task thread before the job is submitted."""
    called: set[int] = field(default_factory=set)
    """Choices that have called a tool."""
    echoes: list[str] = field(default_factory=list)
    """With `job.echo`: the text of each prompt."""
    is_fenced: bool = False
    """Another replica has taken the job over: nothing of this attempt counts any more."""
    # whoever ends it
    outcome: str = ""
    """"finished", or the code of the error."""
    done: threading.Event = field(default_factory=threading.Event)
    """Set when the last event is in the job's log."""

    @property
    def id(self) -> str:
        return self.job.id

    def usage(self) -> Usage:
        cached_tokens = sum(self.cached_by_prompt.values())
        return Usage(self.prompt_tokens, self.completion_tokens, cached_tokens)

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
    """Cancelled: nobody waits for an event any more, but the log gets its end."""

    error: LlmisError


class GiveBack(StrEnum):
    """Why a replica gives a job back before its end."""

    LEFT = "client_gone"
    """Nobody reads it: it waits, in nobody's queue, until somebody does."""
    HANDED_OVER = "handed_over"
    """This replica stops: another one goes on."""


@dataclass(frozen=True, slots=True)
class JobGivenBack:
    """Out of the engine; its log stays open."""

    reason: GiveBack


Item = StepResult | JobStarted | JobEnded | JobDropped | JobGivenBack
Emission = tuple[JobRun, Item]


def num_prompt_tokens(run: JobRun) -> int:
    """Each prompt is counted once, however many choices it has."""
    return sum(len(s.prompt) for s in run.sequences[:: run.job.num_choices])
