"""What the choices of a job add up to, for answers that are not streamed."""

import math
from dataclasses import dataclass, field

from app.logprob_filter import LogprobFilter
from shared.messages import Delta, Echo, FinishReason, TokenLogprobs, ToolCallDelta


@dataclass(slots=True)
class MadeToolCall:
    id: str
    name: str
    arguments: list[str]


@dataclass(slots=True)
class Choice:
    """One choice, gathered from its events."""

    texts: list[str] = field(default_factory=list)
    reasonings: list[str] = field(default_factory=list)
    tool_calls: dict[int, MadeToolCall] = field(default_factory=dict)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    logprob_filter: LogprobFilter = field(default_factory=LogprobFilter)
    echo: Echo | None = None
    """Of its prompt; the events give it to the prompt's first choice alone."""
    finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        return "".join(self.reasonings)

    @property
    def mean_logprob(self) -> float:
        """Of a token, in natural logarithms: how sure the model was of this completion. The
        token that ends it counts; without any token there is nothing to be sure of."""
        if not self.logprobs:
            return -math.inf
        return sum(token.chosen.logprob for token in self.logprobs) / len(self.logprobs)

    def add(self, event: Delta | Echo) -> None:
        if isinstance(event, Echo):
            self.echo = event
            return
        self.texts.append(event.text)
        self.reasonings.append(event.reasoning)
        self.logprobs += self.logprob_filter.pass_(event)
        for piece in event.tool_calls:
            self._add_call(piece)
        self.finish_reason = event.finish_reason

    def _add_call(self, piece: ToolCallDelta) -> None:
        call = self.tool_calls.setdefault(piece.index, MadeToolCall("", "", []))
        call.id = piece.id or call.id
        call.name = piece.name or call.name
        call.arguments.append(piece.arguments)


def share_echoes(choices: list[Choice], num_made: int) -> None:
    """Give the echo of each prompt to all of its `num_made` choices."""
    for index, choice in enumerate(choices):
        choice.echo = choices[index - index % num_made].echo


def best(choices: list[Choice], num_made: int, num_wanted: int) -> list[Choice]:
    """Of each prompt's `num_made` choices the `num_wanted` that the model was surest of."""
    if num_made == num_wanted:
        return choices
    kept: list[Choice] = []
    for first in range(0, len(choices), num_made):
        made = choices[first : first + num_made]
        kept += sorted(made, key=lambda choice: -choice.mean_logprob)[:num_wanted]
    return kept
