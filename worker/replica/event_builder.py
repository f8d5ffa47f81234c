"""Turns the engine loop's events of an attempt into the numbered events of the job's log."""

import msgspec

from shared.denylist.denylist import OutputRules
from shared.wire.events import (
    Delta,
    Echo,
    Embedding,
    Event,
    Failed,
    Finished,
    FinishReason,
    PrefillProgress,
    Started,
    TokenLogprobs,
    later_filtered,
)
from worker.replica.attempt import (
    Attempt,
    AttemptEvent,
    Item,
    JobDropped,
    JobEnded,
    JobPreempted,
    JobStarted,
)
from worker.sequence import StepResult
from worker.text.content import split
from worker.text_parts import Parts


def joined(items: list[AttemptEvent]) -> list[AttemptEvent]:
    """Join the results of each choice into its first one."""
    firsts: dict[tuple[int, int], StepResult] = {}
    texts: dict[tuple[int, int], list[str]] = {}
    ordered: list[AttemptEvent] = []
    for attempt, item in items:
        if not isinstance(item, StepResult):
            ordered.append((attempt, item))
            continue
        key = (id(attempt), item.key[1])
        first = firsts.setdefault(key, item)
        texts.setdefault(key, []).append(item.text)
        if first is item:
            ordered.append((attempt, item))
            continue
        first.token_ids.extend(item.token_ids)
        first.logprobs.extend(item.logprobs)
        first.prompt_logprobs.extend(item.prompt_logprobs)
        first.finish_reason = item.finish_reason
        first.prefilled_tokens = item.prefilled_tokens
        first.embedding = item.embedding
        first.filtered = later_filtered(first.filtered, item.filtered)
    for key, pieces in texts.items():
        if len(pieces) > 1:
            firsts[key].text = "".join(pieces)
    return ordered


def events_of(items: list[AttemptEvent]) -> list[tuple[Attempt, Event]]:
    """Number the events of one round, the results of each choice joined."""
    events: list[tuple[Attempt, Event]] = []
    for attempt, item in joined(items):
        if isinstance(item, JobPreempted):
            continue
        if attempt.job.echo and isinstance(item, StepResult):
            echo = _echo(attempt, item)
            if echo is not None:
                events.append((attempt, echo))
                attempt.next_seq += 1
        events.append((attempt, _event(attempt, item)))
        attempt.next_seq += 1
    return events


def _echo(attempt: Attempt, item: StepResult) -> Echo | None:
    """The prompt, once: before the first token of its first choice."""
    index = item.key[1]
    if index % attempt.job.num_choices:
        return None
    read = attempt.prompt_logprobs.setdefault(index, [])
    if read is None:
        return None
    read += item.prompt_logprobs
    if not item.token_ids and item.finish_reason is None:
        return None
    attempt.prompt_logprobs[index] = None
    text = attempt.echoes[index // attempt.job.num_choices]
    return Echo(attempt.next_seq, attempt.number, index, text, read)


def _event(attempt: Attempt, item: Item) -> Event:
    seq, number = attempt.next_seq, attempt.number
    if isinstance(item, StepResult):
        if item.embedding is not None:
            return Embedding(seq, number, item.key[1], item.embedding)
        if item.token_ids or item.finish_reason is not None:
            return _delta(attempt, item)
        total = len(attempt.sequences[item.key[1]].known_tokens)
        return PrefillProgress(seq, number, item.prefilled_tokens, total)
    if isinstance(item, JobStarted):
        return Started(seq, number, item.prompt_tokens)
    if isinstance(item, JobEnded):
        return Finished(seq, number, item.usage, item.timings)
    assert isinstance(item, JobDropped), "a preemption has no event"
    error = item.error
    return Failed(seq, number, error.status, error.code, error.message, error.param)


def _delta(attempt: Attempt, item: StepResult) -> Delta:
    """The new text of a choice, split by its parser if it has one."""
    index, reason = item.key[1], item.finish_reason
    parts = Parts(item.text)
    parser = attempt.parsers.get(index)
    if parser is not None:
        is_last = reason is not None
        is_cut = reason is not FinishReason.STOP
        found = split(parser, item.text, is_last=is_last, is_cut=is_cut)
        if found is not None:
            parts = found
        else:  # the rest of the text is content
            del attempt.parsers[index]
            is_last = True
        if is_last and parser.has_whole_calls:
            attempt.called.add(index)
    if reason is FinishReason.STOP and index in attempt.called:
        reason = FinishReason.TOOL_CALLS
    return Delta(
        attempt.next_seq,
        attempt.number,
        index,
        parts.content,
        item.token_ids,
        reason,
        parts.reasoning,
        parts.tool_calls,
        item.logprobs if attempt.rules is None else _shown(item.logprobs, attempt.rules),
        item.filtered,
    )


def _shown(tokens: list[TokenLogprobs], rules: OutputRules) -> list[TokenLogprobs]:
    """Remove the alternatives that the denylist would change."""
    return [
        msgspec.structs.replace(
            token,
            top=[t for t in token.top if not rules.changes(t.piece.decode("utf-8", "replace"))],
        )
        for token in tokens
    ]
