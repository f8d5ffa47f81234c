"""What an earlier attempt at a job has left in its log, and how this one goes on behind it."""

from dataclasses import dataclass, field

from shared.messages import Delta, Echo, Embedding, Event, Failed, Finished
from worker.engines.protocol import Vocabulary, assembler_of
from worker.job_run import JobRun


@dataclass(slots=True)
class Past:
    """What clients have been told of a job."""

    produced: dict[int, list[int]] = field(default_factory=dict)
    """Choice index → token ids of its deltas."""
    seen: dict[int, int] = field(default_factory=dict)
    """Choice index → `Filtered.seen`, where a denylist looked at it."""
    ended: set[int] = field(default_factory=set)
    """Choices, or inputs of an embedding job, that need nothing more."""
    echoed: set[int] = field(default_factory=set)
    num_events: int = 0
    is_ended: bool = False
    """The job's last event is there."""

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.produced.values()))


def past_of(events: list[Event]) -> Past:
    """Add up a log."""
    past = Past(num_events=len(events))
    for event in events:
        if isinstance(event, Delta):
            past.produced.setdefault(event.index, []).extend(event.token_ids)
            if event.filtered is not None:
                past.seen[event.index] = event.filtered.seen
            if event.finish_reason is not None:
                past.ended.add(event.index)
        elif isinstance(event, Embedding):
            past.ended.add(event.index)
        elif isinstance(event, Echo):
            past.echoed.add(event.index)
        elif isinstance(event, Failed | Finished):
            past.is_ended = True
    return past


def go_on(run: JobRun, past: Past, vocabulary: Vocabulary) -> None:
    """Let a run whose sequences and parsers are made go on where the log ends.

    The parsers and the denylist read again what is out: what they hold back they hold back again.
    """
    run.ended = frozenset(past.ended)
    run.completion_tokens = past.num_tokens
    for sequence in run.sequences:
        index = sequence.key[1]
        if index in past.echoed:
            run.prompt_logprobs[index] = None
            sequence.prompt_logprobs = False
        sequence.produced = past.produced.get(index, [])
        sequence.seen = past.seen.get(index)
        if not sequence.produced or index in past.ended:
            continue
        _, text = assembler_of(vocabulary, sequence)
        parser = run.parsers.get(index)
        if parser is not None:
            parser.push(text)
