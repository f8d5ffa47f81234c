"""The events of a job: what a replica appends to its log and publishes on its channel."""

from enum import StrEnum
from functools import reduce
from itertools import groupby
from typing import TypeGuard

import msgspec
from msgspec import UNSET, Struct, UnsetType


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Prompt tokens that were taken from the KV cache."""
    reasoning_tokens: int | UnsetType = UNSET
    """Completion tokens of the reasoning; unset for a model that writes none."""


class Timings(Struct, frozen=True):
    """Durations in seconds as the replica measured them."""

    queue_s: float
    """Enqueued by the web tier → first admitted by the engine (wall clocks of two hosts)."""
    prefill_s: float
    decode_s: float


class Started(Struct, frozen=True, tag="start", array_like=True):
    """The engine has admitted the job."""

    seq: int
    attempt: int
    prompt_tokens: int


class PrefillProgress(Struct, frozen=True, tag="prefill", array_like=True):
    """`done` of `total` prompt tokens have been read."""

    seq: int
    attempt: int
    done: int
    total: int


class ToolCallDelta(Struct, frozen=True, array_like=True):
    """A piece of a tool call: id and name are set in the first piece of an index only."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Logprob(Struct, frozen=True, array_like=True):
    token_id: int
    logprob: float
    """Natural logarithm of the probability."""
    piece: bytes
    """The bytes that the token adds to the text; they may be part of a character."""
    name: bytes = b""
    """The name of a token that adds no text, such as the one that ends a turn."""


class TokenLogprobs(Struct, frozen=True, array_like=True):
    """A token in the model's own distribution: before temperature, penalties, bias, truncation
    and grammar."""

    chosen: Logprob
    top: list[Logprob]
    """The most probable tokens, best first; the chosen one need not be among them."""
    is_end: bool = False
    """The token ends the choice and adds nothing to its text."""


class FilterMatch(Struct, frozen=True, array_like=True):
    """A match of the denylist. `begin` and `end` count the characters of all tokens of the choice,
    including masked ones and a stripped leading space."""

    rule: str
    action: str
    begin: int
    end: int


class Filtered(Struct, frozen=True, array_like=True):
    """What is released of a choice's text: the denylist and stop strings hold text back."""

    seen: int
    """Characters released or masked so far, counted as in `FilterMatch`. At the end of the choice
    all others are cut off."""
    matches: list[FilterMatch] = []
    """Those since the previous delta."""


class Delta(Struct, frozen=True, tag="delta", array_like=True, gc=False):
    """New text and tokens of a choice. A text never ends inside a UTF-8 character.

    There is one for every few tokens, and none is in a cycle: the garbage collector's visits would
    take longer than decoding it.
    """

    seq: int
    attempt: int
    index: int
    """Choice index."""
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    """Set in the last delta of the choice."""
    reasoning: str = ""
    """Reasoning text; it precedes `text`."""
    tool_calls: list[ToolCallDelta] = []
    logprobs: list[TokenLogprobs] = []
    """One for each of `token_ids`, if the job has `logprobs`."""
    filtered: Filtered | None = None
    """None = no rule applies to the model's answers, and no stop string takes the log
    probabilities of its tokens away."""


class Echo(Struct, frozen=True, tag="echo", array_like=True):
    """The prompt, for a job with `echo`. It comes once, before the deltas of the prompt's first
    choice; those of its other choices may come earlier."""

    seq: int
    attempt: int
    index: int
    """Of the prompt's first choice."""
    text: str
    logprobs: list[TokenLogprobs] = []
    """With `prompt_logprobs`: one for each token. The first one has no meaning: no token precedes
    it."""


class Embedding(Struct, frozen=True, tag="embedding", array_like=True):
    """The vector of one input."""

    seq: int
    attempt: int
    index: int
    vector: bytes
    """float32, little-endian."""


class Finished(Struct, frozen=True, tag="end", array_like=True):
    """The last event of a job that succeeded. Only the replica writes it: it counts the tokens."""

    seq: int
    attempt: int
    usage: Usage
    timings: Timings


class Failed(Struct, frozen=True, tag="fail", array_like=True):
    """The last event of a job that failed: the fields of an error of `shared.errors`."""

    seq: int
    attempt: int
    status: int
    code: str | None
    message: str
    param: str | None = None


def later_filtered(first: Filtered | None, then: Filtered | None) -> Filtered | None:
    """Join the reports about two consecutive parts of a choice."""
    if first is None or then is None:
        return then or first
    return Filtered(then.seen, first.matches + then.matches)


Event = Started | PrefillProgress | Delta | Echo | Embedding | Finished | Failed


class JobEvent(Struct, frozen=True, array_like=True, gc=False):
    """One event on a hub channel, addressed to a job."""

    job_id: str
    event: Event
    published_at: float = 0.0
    """Unix time in seconds, by the replica's clock."""


def _is_of_one_choice(events: list[Event]) -> TypeGuard[list[Delta]]:
    """Whether they are deltas of the same choice, and at least one."""
    first = events[0] if events else None
    if not isinstance(first, Delta):
        return False
    index = first.index
    return all(isinstance(event, Delta) and event.index == index for event in events)


def join(events: list[Event]) -> list[Event]:
    """Join the deltas of each choice. Their order across choices has no meaning. Idempotent and
    associative: the result does not depend on how the events were batched."""
    if _is_of_one_choice(events):
        return [_sum(events)]
    gathered: dict[int, list[Delta]] = {}
    places: list[Event | list[Delta]] = []
    for event in events:
        if not isinstance(event, Delta):
            places.append(event)
        elif event.index in gathered:
            gathered[event.index].append(event)
        else:
            places.append(gathered.setdefault(event.index, [event]))
    return [_sum(place) if isinstance(place, list) else place for place in places]


def _sum(deltas: list[Delta]) -> Delta:
    if len(deltas) == 1:
        return deltas[0]
    last = deltas[-1]
    text = "".join([delta.text for delta in deltas])
    token_ids = [token for delta in deltas for token in delta.token_ids]
    if not any(d.reasoning or d.tool_calls or d.logprobs or d.filtered for d in deltas):
        # A fifth of the time of what follows, and most are such.
        return Delta(last.seq, last.attempt, last.index, text, token_ids, last.finish_reason)
    return msgspec.structs.replace(
        last,
        text=text,
        token_ids=token_ids,
        reasoning="".join([delta.reasoning for delta in deltas]),
        tool_calls=_join_calls([piece for delta in deltas for piece in delta.tool_calls]),
        logprobs=[token for delta in deltas for token in delta.logprobs],
        filtered=reduce(later_filtered, [delta.filtered for delta in deltas]),
    )


def _join_calls(pieces: list[ToolCallDelta]) -> list[ToolCallDelta]:
    """Join neighbouring pieces of the same tool call."""
    return [
        msgspec.structs.replace(same[0], arguments="".join(piece.arguments for piece in same))
        for same in (list(group) for _, group in groupby(pieces, key=lambda piece: piece.index))
    ]
