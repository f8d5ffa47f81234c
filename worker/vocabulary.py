"""The vocabulary of a model as text and chat need it, for every engine."""

from typing import NamedTuple, Protocol


class FillInMiddle(NamedTuple):
    """Ids of the tokens that mark the text before a gap, the text after it, and the gap."""

    prefix: int
    suffix: int
    middle: int


class Vocabulary(Protocol):
    """Converts text to token ids and back. Thread-safe."""

    @property
    def max_token_bytes(self) -> int:
        """Upper bound of the bytes of text per token."""

    @property
    def adds_bos(self) -> bool:
        """Whether tokenizing with `add_special` prepends the begin token."""

    @property
    def bos_text(self) -> str:
        """Text of the begin token, for templates; empty if the model has none."""

    @property
    def eos_text(self) -> str: ...

    @property
    def control_tokens(self) -> dict[str, int]:
        """Text → id of the tokens that add no text: marks of turns, tool calls and the like."""

    @property
    def fill_in_middle(self) -> FillInMiddle | None:
        """None = the model was not trained for it."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """`add_special` prepends the begin token if the model uses one; `parse_special` reads
        the names of control tokens in the text as those tokens. Raises EngineError, and
        InvalidRequest for a text that the vocabulary cannot spell."""

    def name(self, token: int) -> bytes:
        """The text of a control token, the piece of any other."""

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to the text; none for control tokens and unknown ids."""
