"""Log probabilities in OpenAI's formats: for chat, and for legacy completions."""

import codecs
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Struct

from shared.wire.events import Delta, Echo, FinishReason, Logprob, TokenLogprobs


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatToken(Struct):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[ChatToken]
    refusal: None = None


class CompletionLogprobs(Struct):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


_LEAST = -9999.0
"""OpenAI's value for a probability of 0, because JSON has no infinity."""


def chat_logprobs(tokens: list[TokenLogprobs]) -> ChatLogprobs:
    """The log probabilities of a message, without its end token."""
    return ChatLogprobs([_chat_token(token) for token in tokens if not token.is_end])


def _chat_token(token: TokenLogprobs) -> ChatToken:
    chosen = token.chosen
    top = [TopLogprob(_text(t), _value(t), list(t.piece)) for t in token.top]
    return ChatToken(_text(chosen), _value(chosen), list(chosen.piece), top)


def _value(logprob: Logprob) -> float:
    # Not `max`, which returns NaN: JSON has no number for it either.
    return logprob.logprob if logprob.logprob > _LEAST else _LEAST


def _text(logprob: Logprob) -> str:
    return (logprob.piece or logprob.name).decode("utf-8", "replace")


def _name(logprob: Logprob) -> str:
    """The token's name in legacy completions: part of a character is written as its bytes."""
    try:
        return (logprob.piece or logprob.name).decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in logprob.piece)


class CompletionLogprobsWriter:
    """Formats the tokens of one choice in order, each with its offset in the text."""

    def __init__(self, offset: int = 0) -> None:
        """`offset`: characters of the echoed prompt, with which the text begins."""
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, tokens: list[TokenLogprobs]) -> CompletionLogprobs:
        written = CompletionLogprobs([], [], [], [])
        for token in tokens:
            written.text_offset.append(self._offset)
            written.token_logprobs.append(_value(token.chosen))
            written.tokens.append(_name(token.chosen))
            written.top_logprobs.append(_top(token))
            self._offset += len(self._decoder.decode(token.chosen.piece))
        return written


def _top(token: TokenLogprobs) -> dict[str, float]:
    """The most probable tokens and the chosen one; of those with one name, the most probable."""
    top: dict[str, float] = {}
    # token.top is in falling order, so the first of a name is the most probable one.
    for found in [*token.top, token.chosen]:
        top.setdefault(_name(found), _value(found))
    return top


def prompt_logprobs(prompt: str | list[int], echo: Echo) -> CompletionLogprobs:
    """The log probabilities of an echoed prompt. Its first token has none: nothing precedes it."""
    written = CompletionLogprobsWriter().write(echo.logprobs)
    written.text_offset = _prompt_offsets(prompt, echo)
    if echo.logprobs:
        written.token_logprobs[0] = written.top_logprobs[0] = None
    return written


def _prompt_offsets(prompt: str | list[int], echo: Echo) -> list[int]:
    """The offset of each token in the echoed text.

    Token ids are echoed with the names of control tokens. A text is echoed as it was sent, without
    the space that some vocabularies put in front of it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ends = [0]
    for token in echo.logprobs:
        name = token.chosen.name if isinstance(prompt, list) else b""
        ends.append(ends[-1] + len(decoder.decode(token.chosen.piece or name)))
    # Characters that the vocabulary put in front: the tokens have them, the echo does not.
    num_added = max(0, ends[-1] - len(echo.text))
    return [max(0, end - num_added) for end in ends[:-1]]


def joined(left: CompletionLogprobs | None, right: CompletionLogprobs) -> CompletionLogprobs:
    if left is None:
        return right
    return CompletionLogprobs(
        left.text_offset + right.text_offset,
        left.token_logprobs + right.token_logprobs,
        left.tokens + right.tokens,
        left.top_logprobs + right.top_logprobs,
    )


_MASKED = b"***"


@dataclass(slots=True)
class LogprobFilter:
    """Holds back the log probabilities of text that is held back, and drops those of text that is
    cut off. One for each choice; takes its deltas in order, joined or not."""

    _held: list[tuple[int, int, TokenLogprobs]] = field(default_factory=list)
    """Tokens whose text is held back: begin, end in characters of the unfiltered text, token."""
    _masks: list[tuple[int, int]] = field(default_factory=list)
    """Begin and end of masked text."""
    _length: int = 0
    """Characters of unfiltered text so far."""
    _decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def release(self, delta: Delta) -> list[TokenLogprobs]:
        """The tokens that may be shown by now. Those of masked text are shown as `***`."""
        filtered = delta.filtered
        if filtered is None:
            return delta.logprobs
        for token in delta.logprobs:
            begin = self._length
            self._length += len(self._decoder.decode(token.chosen.piece))
            # The first bytes of a character decode to nothing yet; they are where it will be.
            end = max(self._length, begin + 1) if token.chosen.piece else begin
            self._held.append((begin, end, token))
        self._masks += [(m.begin, m.end) for m in filtered.matches if m.action == "mask"]
        # A stop string may begin within a token, whose first characters are shown then.
        is_end = delta.finish_reason not in (None, FinishReason.CONTENT_FILTER)
        is_whole = is_end and filtered.seen >= self._length
        shown: list[TokenLogprobs] = []
        while self._held:
            begin, end, _ = self._held[0]
            is_seen = end <= filtered.seen or (is_end and begin < filtered.seen)
            if not (is_whole or is_seen):
                break
            shown.append(self._shown(*self._held.pop(0)))
        return shown

    def _shown(self, begin: int, end: int, token: TokenLogprobs) -> TokenLogprobs:
        if not any(begin < mask[1] and mask[0] < end for mask in self._masks):
            return token
        chosen = Logprob(-1, token.chosen.logprob, b"", _MASKED)
        return msgspec.structs.replace(token, chosen=chosen, top=[])
