"""Admission to the batch, and how much prefill a step does. Engine loop only.

Each prompt in prefill takes a pass of its own through the weights in every step, and the streams
wait for it. So concurrent prefill is bounded by tokens, and beside streams also by prompts.
"""

from collections.abc import Collection

from worker.engines.exllamav2 import pages
from worker.engines.exllamav2.pages import Demand, PageLedger
from worker.engines.exllamav2.running_sequence import RunningSequence
from worker.sequence import Sequence

BUSY_CHUNK_TOKENS = 512
"""Of one prompt per step, while other sequences stream."""
_MAX_BUSY_TOKENS = 1024
"""Of all prompts per step, while other sequences stream."""
_MAX_BUSY_PROMPTS = 8
_MAX_IDLE_TOKENS = 32768
"""Of all prompts, while none streams: cancellation waits for the end of a step, so a step must
take no more than seconds."""


class PageAdmission:
    def __init__(self, num_pages: int, num_draft_tokens: int) -> None:
        self.ledger = PageLedger(num_pages)
        self._num_draft_tokens = num_draft_tokens
        self._asked: tuple[Sequence, Demand] | None = None
        """Cached demand of the sequence at the head of the queue, which is asked for in every
        step while it waits."""

    def demand(self, sequence: Sequence) -> Demand:
        if self._asked is None or self._asked[0] is not sequence:
            wanted = pages.demand(sequence.known_tokens, sequence.num_left, self._num_draft_tokens)
            self._asked = (sequence, wanted)
        return self._asked[1]

    def reserve(self, sequence: Sequence) -> None:
        self.ledger.reserve(sequence.key, self.demand(sequence))
        self._asked = None

    def has_room(self, sequence: Sequence, running: Collection[RunningSequence]) -> bool:
        """Whether its pages are free now and its prompt may be read along with the others."""
        wanted = self.demand(sequence)
        return self.ledger.fits(wanted) and _can_read(self.ledger.unread_tokens(wanted), running)


def chunk_tokens(max_tokens: int, running: Collection[RunningSequence]) -> int:
    """The largest chunk of a prompt in the next step."""
    is_streaming = any(not sequence.is_reading for sequence in running)
    return min(BUSY_CHUNK_TOKENS, max_tokens) if is_streaming else max_tokens


def _can_read(unread_tokens: int, running: Collection[RunningSequence]) -> bool:
    reading = [sequence.unread_tokens for sequence in running if sequence.is_reading]
    if not reading or unread_tokens <= 0:
        return True
    if len(reading) == len(running):  # no sequence streams
        return sum(reading) + unread_tokens <= _MAX_IDLE_TOKENS
    in_a_step = sum(min(tokens, BUSY_CHUNK_TOKENS) for tokens in (*reading, unread_tokens))
    return len(reading) < _MAX_BUSY_PROMPTS and in_a_step <= _MAX_BUSY_TOKENS
