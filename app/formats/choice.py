"""The choices of a job, gathered from its events for answers that are not streamed."""

import math
from dataclasses import dataclass, field

from app.formats.logprobs import LogprobFilter
from shared.wire.events import Delta, Echo, FinishReason, TokenLogprobs, ToolCallDelta


@dataclass(slots=True)
class GatheredToolCall:
    id: str
    name: str
    arguments: list[str]


@dataclass(slots=True)
class Choice:
    """One choice, gathered from its events."""

    texts: list[str] = field(default_factory=list)
    reasonings: list[str] = field(default_factory=list)
    tool_calls: dict[int, GatheredToolCall] = field(default_factory=dict)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    logprob_filter: LogprobFilter = field(default_factory=LogprobFilter)
    echo: Echo | None = None
    """The echo of its prompt. Only the prompt's first choice gets it from the events."""
    finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        return "".join(self.reasonings)

    @property
    def mean_logprob(self) -> float:
        """Mean natural logarithm of a token's probability, the end token included; -inf without
        tokens."""
        if not self.logprobs:
            return -math.inf
        return sum(token.chosen.logprob for token in self.logprobs) / len(self.logprobs)

    def add(self, event: Delta | Echo) -> None:
        if isinstance(event, Echo):
            self.echo = event
            return
        self.texts.append(event.text)
        self.reasonings.append(event.reasoning)
        self.logprobs += self.logprob_filter.release(event)
        for piece in event.tool_calls:
            self._add_call(piece)
        self.finish_reason = event.finish_reason

    def _add_call(self, piece: ToolCallDelta) -> None:
        call = self.tool_calls.setdefault(piece.index, GatheredToolCall("", "", []))
        call.id = piece.id or call.id
        call.name = piece.name or call.name
        call.arguments.append(piece.arguments)


def share_echoes(choices: list[Choice], num_made: int) -> None:
    """Give the echo of each prompt to all of its `num_made` choices."""
    # The choices of a prompt are adjacent, so its first one begins a group of num_made.
    for index, choice in enumerate(choices):
        choice.echo = choices[index - index % num_made].echo


def best(choices: list[Choice], num_made: int, num_wanted: int) -> list[Choice]:
    """Of each prompt's `num_made` choices, the `num_wanted` with the highest mean logprob."""
    if num_made == num_wanted:
        return choices
    kept: list[Choice] = []
    for first in range(0, len(choices), num_made):
        made = choices[first : first + num_made]
        kept += sorted(made, key=lambda choice: -choice.mean_logprob)[:num_wanted]
    return kept
