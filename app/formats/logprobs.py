"""Log probabilities as OpenAI words them: for chat, and for legacy completions."""

import codecs

from msgspec import Struct

from shared.messages import Echo, Logprob, TokenLogprobs


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
"""What OpenAI gives for a probability of nothing: JSON has no infinity."""


def chat_logprobs(tokens: list[TokenLogprobs]) -> ChatLogprobs:
    """Of the tokens of a message: the one that ends it is none of them."""
    return ChatLogprobs([_chat_token(token) for token in tokens if not token.is_end])


def _chat_token(token: TokenLogprobs) -> ChatToken:
    chosen = token.chosen
    top = [TopLogprob(_text(t), _value(t), list(t.piece)) for t in token.top]
    return ChatToken(_text(chosen), _value(chosen), list(chosen.piece), top)


def _value(logprob: Logprob) -> float:
    return max(logprob.logprob, _LEAST)


def _text(logprob: Logprob) -> str:
    return (logprob.piece or logprob.name).decode("utf-8", "replace")


def _name(logprob: Logprob) -> str:
    """The token as legacy completions call it: half a character by its bytes."""
    try:
        return (logprob.piece or logprob.name).decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in logprob.piece)


class CompletionLogprobsWriter:
    """Words the tokens of one choice, in order: each knows where in the text it begins."""

    def __init__(self, offset: int = 0) -> None:
        """`offset`: length of the echoed prompt, with which the text begins."""
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
    """The best ones and the chosen one; of those with the same name the most probable."""
    top: dict[str, float] = {}
    for found in [*token.top, token.chosen]:
        top.setdefault(_name(found), _value(found))
    return top


def prompt_logprobs(prompt: str | list[int], echo: Echo) -> CompletionLogprobs:
    """Those of an echoed prompt: nothing comes before its first token that could foretell it."""
    written = CompletionLogprobsWriter().write(echo.logprobs)
    written.text_offset = _prompt_offsets(prompt, echo)
    if echo.logprobs:
        written.token_logprobs[0] = written.top_logprobs[0] = None
    return written


def _prompt_offsets(prompt: str | list[int], echo: Echo) -> list[int]:
    """Where in the echoed text each token begins.

    Token ids are echoed with the names of control tokens. A text is echoed as it was sent, also
    where the vocabulary has put a space in front.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ends = [0]
    for token in echo.logprobs:
        name = token.chosen.name if isinstance(prompt, list) else b""
        ends.append(ends[-1] + len(decoder.decode(token.chosen.piece or name)))
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
