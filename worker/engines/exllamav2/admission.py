"""Who is let into the batch, and how much of their prompts a step reads. Engine loop only.

Every prompt that is read is a pass of its own through the weights, in every step, while the
streams wait: what is read at the same time is bounded by tokens, and while there are streams by
their number too.
"""

from collections.abc import Collection

from worker.engines.exl2 import pages
from worker.engines.exl2.live import LiveSequence
from worker.engines.exl2.pages import Demand, PageLedger
from worker.engines.protocol import Sequence

BUSY_CHUNK_TOKENS = 512
"""Of one prompt in a step while others stream."""
_MAX_BUSY_TOKENS = 1024
"""Of all prompts in a step while others stream."""
_MAX_BUSY_PROMPTS = 8
_MAX_IDLE_TOKENS = 32768
"""Of all prompts while nobody streams: a step is to end within seconds, to be cancelled."""


class Admission:
    def __init__(self, num_pages: int, num_draft_tokens: int) -> None:
        self.ledger = PageLedger(num_pages)
        self._num_draft_tokens = num_draft_tokens
        self._asked: tuple[Sequence, Demand] | None = None
        """What was worked out for the sequence at the head of the queue: it is asked for in
        every step while it waits."""

    def demand(self, sequence: Sequence) -> Demand:
        if self._asked is None or self._asked[0] is not sequence:
            wanted = pages.demand(sequence.known_tokens, sequence.num_left, self._num_draft_tokens)
            self._asked = (sequence, wanted)
        return self._asked[1]

    def take(self, sequence: Sequence) -> None:
        self.ledger.take(sequence.key, self.demand(sequence))
        self._asked = None

    def has_room(self, sequence: Sequence, live: Collection[LiveSequence]) -> bool:
        """Whether there are pages for it now, and its prompt may be read beside the others'."""
        wanted = self.demand(sequence)
        return self.ledger.fits(wanted) and _can_read(self.ledger.unread_tokens(wanted), live)


def chunk_tokens(max_tokens: int, live: Collection[LiveSequence]) -> int:
    """The largest piece of a prompt in the next step."""
    is_streaming = any(not one.is_reading for one in live)
    return min(BUSY_CHUNK_TOKENS, max_tokens) if is_streaming else max_tokens


def _can_read(unread_tokens: int, live: Collection[LiveSequence]) -> bool:
    reading = [one.unread_tokens for one in live if one.is_reading]
    if not reading or unread_tokens <= 0:
        return True
    if len(reading) == len(live):
        return sum(reading) + unread_tokens <= _MAX_IDLE_TOKENS
    in_a_step = sum(min(tokens, BUSY_CHUNK_TOKENS) for tokens in (*reading, unread_tokens))
    return len(reading) < _MAX_BUSY_PROMPTS and in_a_step <= _MAX_BUSY_TOKENS
