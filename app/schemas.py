"""The request bodies of the OpenAI endpoints, and how a bad one is explained.

Where OpenAI's clients send null for "not set", so may any field here.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from shared.errors import InvalidRequest
from shared.messages import ChatMessage, Sampling
from shared.settings import SamplingDefaults

T = TypeVar("T")

Temperature = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Probability = Annotated[float, Meta(ge=0, le=1)]
_INT32_MAX = 2**31 - 1
Positive = Annotated[int, Meta(ge=1, le=_INT32_MAX)]
TokenId = Annotated[int, Meta(ge=0, le=_INT32_MAX)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]
Stop = StopText | Annotated[list[StopText], Meta(max_length=16)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
TokenIds = Annotated[list[TokenId], Meta(min_length=1)]


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None


class TextPart(Struct, frozen=True):
    """A part of a message. Only text is understood."""

    type: str
    text: str | None = None


class Message(Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None

    def to_message(self, position: int) -> ChatMessage:
        where = f"messages[{position}].content"
        if self.content is None and self.role != "assistant":
            raise InvalidRequest(f"{where} is missing.", param=where)
        content = self.content or ""
        if isinstance(content, list):
            for i, part in enumerate(content):
                if part.type != "text" or part.text is None:
                    raise InvalidRequest(
                        f"{where}[{i}] is a part of type {part.type!r}; "
                        "this model takes text parts only.",
                        param=f"{where}[{i}]",
                    )
            content = "".join(part.text or "" for part in content)
        role = "system" if self.role == "developer" else self.role
        return ChatMessage(role, content, self.name)


class GenerationRequest(Struct, frozen=True, kw_only=True):
    """What chat and legacy completions have in common."""

    model: str
    max_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=0, le=_INT32_MAX)] | None = None
    min_p: Probability | None = None
    stop: Stop | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    logit_bias: dict[TokenId, Bias] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Positive | None = None
    user: str | None = None

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def is_stream(self) -> bool:
        return bool(self.stream)

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def stop_strings(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def sampling(self, defaults: SamplingDefaults) -> Sampling:
        """What is given here, else the model's defaults, else OpenAI's."""
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": self.seed,
            "logit_bias": self.logit_bias,
        }
        for name in defaults.__struct_fields__:
            if given[name] is None:
                given[name] = getattr(defaults, name)
        return Sampling(**{name: value for name, value in given.items() if value is not None})


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """Body of `POST /v1/completions`. Without `max_tokens` OpenAI's 16 hold."""

    prompt: str | list[Any]

    def prompts(self) -> list[str | list[int]]:
        """The prompts as texts or token ids. Raises InvalidRequest."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        for shape in (list[str], TokenIds, list[TokenIds]):
            try:
                prompts: Any = msgspec.convert(self.prompt, shape)
            except msgspec.ValidationError:
                continue
            if prompts:
                return [prompts] if shape is TokenIds else prompts
        raise InvalidRequest(
            "prompt must be a string, a list of strings, a list of token ids "
            "or a list of lists of token ids, and not empty.",
            param="prompt",
        )


_SHOWN_CHARS = 100


def shortened(text: str) -> str:
    """A text of the client's as it is quoted in an error."""
    return repr(text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…")


_REFUSED_FIELDS = (
    *("tools", "functions", "logprobs", "top_logprobs"),
    *("echo", "suffix", "best_of", "audio", "modalities", "prediction"),
)
"""They would change the answer and are not implemented: an honest 400 instead of silence."""


def parse(body: bytes, shape: type[T]) -> T:
    """Decode a request body. Raises InvalidRequest with the name of the bad parameter."""
    return convert(decode(body), shape)


def decode(body: bytes) -> Any:
    """Raises InvalidRequest for what is not JSON."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise InvalidRequest(f"The body is not valid JSON: {exc}") from exc


def convert(raw: Any, shape: type[T]) -> T:
    """Check a decoded body of a generation endpoint against a schema. Raises InvalidRequest."""
    if not isinstance(raw, dict):
        raise InvalidRequest("The body must be a JSON object.")
    for name in _REFUSED_FIELDS:
        value = raw.get(name)
        if value is not None and value is not False and value != []:
            raise InvalidRequest(f"{name} is not supported.", param=name)
    if raw.get("response_format", {"type": "text"}) not in (None, {"type": "text"}):
        raise InvalidRequest(
            "response_format other than text is not supported.", param="response_format"
        )
    return check_shape(raw, shape)


def check_shape(raw: Any, shape: type[T]) -> T:
    """Check a decoded body against a schema, and nothing else. Raises InvalidRequest."""
    if not isinstance(raw, dict):
        raise InvalidRequest("The body must be a JSON object.")
    try:
        # Keys of JSON objects are text: the numbers in logit_bias's are read as such.
        return msgspec.convert(raw, shape, str_keys=True)
    except msgspec.ValidationError as exc:
        raise _explain(str(exc)) from exc
    except RecursionError as exc:
        raise InvalidRequest("The body is nested too deeply.") from exc


def _explain(message: str) -> InvalidRequest:
    """Turn msgspec's "Expected `int`, got `str` - at `$.n`" into an error that names `n`.

    The place can also read "- at `key` in `$.logit_bias`".
    """
    reason, _, place = message.partition(" - at ")
    path = re.search(r"`\$\.?([^`]*)`", place)
    param = re.sub(r"\[\.\.\.\]", "", path[1]) if path else ""
    missing = re.search(r"missing required field `(\w+)`", reason)
    if missing:
        param = f"{param}.{missing[1]}".lstrip(".")
        return InvalidRequest(f"Missing required parameter: {param}.", param=param)
    return InvalidRequest(
        f"Invalid value for {param or 'the body'}: {reason}.", param=param or None
    )
