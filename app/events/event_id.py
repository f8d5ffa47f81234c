"""The id of a streamed event: how much of an answer its reader has.

An answer is made in steps: step 0 is what comes before any text, step k + 1 is made of event k of
the job's log. `<request>:<n>` = the first n steps are delivered. Several steps can be joined into
one write, and a connection can break in the middle of it: `<request>:<n>+<m>.<sent>` = the m steps
after the first n were joined, and the first `sent` chunks of them are delivered. The same steps
joined give the same chunks, in any process.
"""

import re

from msgspec import Struct

from shared.errors import InvalidRequest

_FORM = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]{0,127}):([0-9]{1,9})(?:\+([1-9][0-9]{0,8})\.([1-9][0-9]{0,8}))?"
)


class EventId(Struct, frozen=True, gc=False):
    job_id: str
    num_steps: int = 0
    """Delivered whole."""
    num_joined: int = 0
    """Steps that are delivered in part; 0 = none."""
    num_sent: int = 0
    """Chunks delivered of those."""

    @property
    def next_seq(self) -> int:
        """Number of the first event that is not delivered whole: step 0 is made of none."""
        return max(0, self.num_steps - 1)

    def __str__(self) -> str:
        whole = f"{self.job_id}:{self.num_steps}"
        return f"{whole}+{self.num_joined}.{self.num_sent}" if self.num_joined else whole


def parse_event_id(text: str) -> EventId:
    """Raises InvalidRequest."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise no_such_event(text)
    job_id, *numbers = found.groups(default="0")
    event_id = EventId(job_id, *map(int, numbers))
    if event_id.num_joined > 1 and not event_id.num_steps:
        raise no_such_event(text)  # step 0 is never joined with others
    return event_id


def no_such_event(event_id: object) -> InvalidRequest:
    return InvalidRequest(f"There is no event {str(event_id)[:200]!r}.", param="Last-Event-ID")
