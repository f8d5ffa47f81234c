"""Log probabilities as OpenAI words them: for chat, and for legacy completions."""

import codecs

from msgspec import Struct

from shared.messages import Logprob, TokenLogprobs


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
    return ChatLogprobs([_chat_token(token) for token in tokens])


def _chat_token(token: TokenLogprobs) -> ChatToken:
    chosen = token.chosen
    top = [TopLogprob(_text(t), _value(t), list(t.piece)) for t in token.top]
    return ChatToken(_text(chosen), _value(chosen), list(chosen.piece), top)


def _value(logprob: Logprob) -> float:
    return max(logprob.logprob, _LEAST)


def _text(logprob: Logprob) -> str:
    return logprob.piece.decode("utf-8", "replace")


def _name(logprob: Logprob) -> str:
    """The token as legacy completions call it: half a character by its bytes."""
    try:
        return logprob.piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in logprob.piece)


class CompletionLogprobsWriter:
    """Words the tokens of one choice, in order: each knows where in the text it begins."""

    def __init__(self) -> None:
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def prompt(self, tokens: list[TokenLogprobs]) -> CompletionLogprobs:
        """An echoed prompt: nothing comes before its first token that could foretell it."""
        written = self.completion(tokens)
        if tokens:
            written.token_logprobs[0] = written.top_logprobs[0] = None
        return written

    def completion(self, tokens: list[TokenLogprobs]) -> CompletionLogprobs:
        written = CompletionLogprobs([], [], [], [])
        for token in tokens:
            written.text_offset.append(self._offset)
            written.token_logprobs.append(_value(token.chosen))
            written.tokens.append(_name(token.chosen))
            written.top_logprobs.append({_name(top): _value(top) for top in token.top})
            self._offset += len(self._decoder.decode(token.chosen.piece))
        return written


def joined(left: CompletionLogprobs | None, right: CompletionLogprobs) -> CompletionLogprobs:
    if left is None:
        return right
    return CompletionLogprobs(
        left.text_offset + right.text_offset,
        left.token_logprobs + right.token_logprobs,
        left.tokens + right.tokens,
        left.top_logprobs + right.top_logprobs,
    )
