"""From what the engine loop says of its jobs to numbered events."""

import logging

import msgspec

from shared.denylist import OutputRules
from shared.messages import (
    Delta,
    Echo,
    Embedding,
    Event,
    Failed,
    Finished,
    FinishReason,
    Progress,
    Started,
    TokenLogprobs,
    later_filtered,
)
from worker.chat.parser import Parts
from worker.engines.protocol import StepResult
from worker.job_run import Emission, Item, JobDropped, JobEnded, JobGivenBack, JobRun, JobStarted

_log = logging.getLogger(__name__)


def joined(emissions: list[Emission]) -> list[Emission]:
    """Join what each choice has gained into the first of its results."""
    firsts: dict[tuple[int, int], StepResult] = {}
    texts: dict[tuple[int, int], list[str]] = {}
    ordered: list[Emission] = []
    for run, item in emissions:
        if not isinstance(item, StepResult):
            ordered.append((run, item))
            continue
        key = (id(run), item.key[1])
        first = firsts.setdefault(key, item)
        texts.setdefault(key, []).append(item.text)
        if first is item:
            ordered.append((run, item))
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


def events_of(emissions: list[Emission]) -> list[tuple[JobRun, Event]]:
    """Number the emissions of one round as events, the text of each choice joined."""
    events: list[tuple[JobRun, Event]] = []
    for run, item in joined(emissions):
        if isinstance(item, JobGivenBack):
            continue
        if run.job.echo and isinstance(item, StepResult):
            echo = _echo(run, item)
            if echo is not None:
                run.next_seq += 1
                events.append((run, echo))
        event = _event(run, item)
        run.next_seq += 1
        events.append((run, event))
    return events


def _echo(run: JobRun, item: StepResult) -> Echo | None:
    """A prompt, once: before the first token of its first choice."""
    index = item.key[1]
    if index % run.job.num_choices:
        return None
    read = run.prompt_logprobs.setdefault(index, [])
    if read is None:
        return None
    read += item.prompt_logprobs
    if not item.token_ids and item.finish_reason is None:
        return None
    run.prompt_logprobs[index] = None
    text = run.echoes[index // run.job.num_choices]
    return Echo(run.next_seq, run.attempt, index, text, read)


def _event(run: JobRun, item: Item) -> Event:
    seq, attempt = run.next_seq, run.attempt
    if isinstance(item, StepResult):
        if item.embedding is not None:
            return Embedding(seq, attempt, item.key[1], item.embedding)
        if item.token_ids or item.finish_reason is not None:
            return _delta(run, item)
        total = len(run.sequences[item.key[1]].known_tokens)
        return Progress(seq, attempt, item.prefilled_tokens, total)
    if isinstance(item, JobStarted):
        return Started(seq, attempt, item.prompt_tokens)
    if isinstance(item, JobEnded):
        return Finished(seq, attempt, item.usage, item.timings)
    assert isinstance(item, JobDropped), "sorted out before"
    error = item.error
    return Failed(seq, attempt, error.status, error.code, error.message, error.param)


def _delta(run: JobRun, item: StepResult) -> Delta:
    """What a choice has gained, sorted by its parser if it has one."""
    index, reason = item.key[1], item.finish_reason
    parts = Parts(item.text)
    parser = run.parsers.get(index)
    if parser is not None:
        try:
            parts = parser.push(item.text)
            if reason is not None:
                parts = parts + parser.finish()
        except Exception:
            # An oddity in one text must not silence all others: the rest of it stays content.
            _log.exception("output parser failed", extra={"request_id": run.id})
            del run.parsers[index]
        if parser.has_calls:
            run.called.add(index)
    if reason is FinishReason.STOP and index in run.called:
        reason = FinishReason.TOOL_CALLS
    return Delta(
        run.next_seq,
        run.attempt,
        index,
        parts.content,
        item.token_ids,
        reason,
        parts.reasoning,
        parts.tool_calls,
        item.logprobs if run.rules is None else _shown(item.logprobs, run.rules),
        item.filtered,
    )


def _shown(tokens: list[TokenLogprobs], rules: OutputRules) -> list[TokenLogprobs]:
    """Without the alternatives that the denylist would not let through."""
    return [
        msgspec.structs.replace(
            token,
            top=[t for t in token.top if not rules.changes(t.piece.decode("utf-8", "replace"))],
        )
        for token in tokens
    ]
