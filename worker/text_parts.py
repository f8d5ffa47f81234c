"""The parts of generated text, and the contract of what splits it into them. `worker.chat` knows
the formats; `worker.text` and the sequences know only this."""

from dataclasses import dataclass, field
from typing import Protocol

from shared.wire.events import ToolCallDelta


@dataclass(slots=True)
class Parts:
    """The parts of a piece of text."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """Where each character of `content` stood in the text."""

    def __add__(self, later: "Parts") -> "Parts":
        return Parts(
            self.content + later.content,
            self.reasoning + later.reasoning,
            self.tool_calls + later.tool_calls,
            self.places + later.places,
        )


class TextParser(Protocol):
    """Splits the text of one choice. The sum of the parts does not depend on how it is cut."""

    job_id: str

    @property
    def has_whole_calls(self) -> bool:
        """Whether there are calls, and the arguments of each are whole JSON."""

    @property
    def reads_reasoning(self) -> bool:
        """Whether the text that follows may have reasoning."""

    @property
    def num_decided(self) -> int:
        """Characters from the beginning of the text whose part does not depend on what follows."""

    def push(self, text: str) -> Parts:
        """Add generated text and return the parts that are certain now."""

    def finish(self, *, is_cut: bool = False) -> Parts:
        """End the text and return what was held back. Call it once. `is_cut`: the model has not
        ended it. Then the begin of a call is not content, and reasoning does not end in calls."""
