"""What earlier attempts at a job have logged, and how the next attempt resumes after it."""

from dataclasses import dataclass, field

from shared.wire.events import Delta, Echo, Embedding, Event, Failed, Finished
from worker.replica.attempt import Attempt
from worker.text.completion import assembler_of
from worker.text.content import split
from worker.vocabulary import Vocabulary


@dataclass(slots=True)
class LoggedProgress:
    """What clients may have received of a job."""

    produced: dict[int, list[int]] = field(default_factory=dict)
    """Choice index → token ids of its deltas."""
    seen: dict[int, int] = field(default_factory=dict)
    """Choice index → `Filtered.seen`, for a text that a denylist has filtered."""
    ended: set[int] = field(default_factory=set)
    """Choices, or inputs of an embedding job, that are complete."""
    echoed: set[int] = field(default_factory=set)
    num_events: int = 0
    is_ended: bool = False
    """The job's last event is in the log."""
    is_readable: bool = True
    """False = events of the log that this process cannot decode are left out; they count."""

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.produced.values()))


def logged_progress(events: list[Event]) -> LoggedProgress:
    """Add up a log."""
    progress = LoggedProgress(num_events=len(events))
    for event in events:
        if isinstance(event, Delta):
            progress.produced.setdefault(event.index, []).extend(event.token_ids)
            if event.filtered is not None:
                progress.seen[event.index] = event.filtered.seen
            if event.finish_reason is not None:
                progress.ended.add(event.index)
        elif isinstance(event, Embedding):
            progress.ended.add(event.index)
        elif isinstance(event, Echo):
            progress.echoed.add(event.index)
        elif isinstance(event, Failed | Finished):
            progress.is_ended = True
    return progress


def resume(attempt: Attempt, progress: LoggedProgress, vocabulary: Vocabulary) -> None:
    """Let an attempt whose sequences and parsers are made continue where the log ends. The parsers
    and the denylist read the logged text again: they hold back what they held back then."""
    attempt.ended = frozenset(progress.ended)
    attempt.completion_tokens = progress.num_tokens
    for sequence in attempt.sequences:
        index = sequence.key[1]
        if index in progress.echoed:
            attempt.prompt_logprobs[index] = None
            sequence.prompt_logprobs = False
        sequence.produced = progress.produced.get(index, [])
        sequence.seen = progress.seen.get(index)
        if not sequence.produced:
            continue
        assembler, text = assembler_of(vocabulary, sequence)
        if assembler.reasoning_tokens is not None:
            attempt.reasoning_tokens[index] = assembler.reasoning_tokens
        parser = attempt.parsers.get(index)
        if parser is None or index in progress.ended:
            continue
        if split(parser, text, is_last=False) is None:  # the rest of the text is content
            del attempt.parsers[index]
