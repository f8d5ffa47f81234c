"""The request bodies of the generation endpoints: OpenAI's fields and extensions.

OpenAI's clients may send null for "not set", so every optional field takes null. A field's
docstring says what differs from OpenAI.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from app.schemas.grammars import choice_grammar, schema_grammar, text_grammar
from app.schemas.messages import Message
from app.schemas.tools import ResponseFormat, ToolChoice, ToolParam
from shared.errors import InvalidRequest
from shared.settings.fields import Settings
from shared.settings.model_settings import SamplingDefaults
from shared.wire.job import Grammar, GrammarKind, Sampling

Temperature = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Probability = Annotated[float, Meta(ge=0, le=1)]
_INT32_MAX = 2**31 - 1
Positive = Annotated[int, Meta(ge=1, le=_INT32_MAX)]
NotNegative = Annotated[int, Meta(ge=0, le=_INT32_MAX)]
TokenId = Annotated[int, Meta(ge=0, le=_INT32_MAX)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]
Stop = StopText | Annotated[list[StopText], Meta(max_length=16)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
LogitBias = Annotated[dict[TokenId, Bias], Meta(max_length=1024)]
TokenIds = Annotated[list[TokenId], Meta(min_length=1)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
MetadataKey = Annotated[str, Meta(max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=16)]
GrammarText = Annotated[str, Meta(min_length=1)]
ChoiceText = Annotated[str, Meta(min_length=1, max_length=4096)]


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Accepted; streams are not padded."""


class GenerationRequest(Struct, frozen=True, kw_only=True):
    """The fields that chat and legacy completions have in common."""

    model: str
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1, le=_INT32_MAX)] | None = None
    """Extension: sample among that many most probable tokens; 0 or -1 = among all."""
    min_p: Probability | None = None
    """Extension: sample among tokens at least this probable, relative to the most probable one."""
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    """Extension: above 1 makes tokens that the completion already has less probable."""
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    logit_bias: LogitBias | None = None
    stop: Stop | None = None
    """Up to 16."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Positive | None = None
    user: str | None = None
    """Accepted; the end user's identity is not used."""
    min_tokens: NotNegative | None = None
    """Extension: no end token is sampled before that many tokens."""
    ignore_eos: bool | None = None
    """Extension: generate to the maximum, end tokens or not."""
    timeout_s: Annotated[float, Meta(gt=0)] | None = None
    """Extension: seconds until the request fails; `request_timeout_s` at most."""
    priority: Literal["interactive", "background", "batch"] | None = None
    """Extension: the class of the request in the queue."""
    response_format: ResponseFormat | None = None
    guided_json: dict[str, Any] | None = None
    """Extension: the completion matches this JSON schema."""
    guided_regex: GrammarText | None = None
    """Extension: the completion matches this regular expression as a whole."""
    guided_grammar: GrammarText | None = None
    """Extension: the completion matches this grammar, in Lark's notation or in GBNF."""
    guided_choice: Annotated[list[ChoiceText], Meta(min_length=1, max_length=256)] | None = None
    """Extension: the completion is one of these texts."""
    metadata: Metadata | None = None
    store: bool | None = None
    """Accepted; nothing is stored."""
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    """Accepted; there is one tier."""

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
        """The request's values, else the model's defaults, else OpenAI's."""
        given = {name: getattr(self, name) for name in Sampling.__struct_fields__}
        if self.top_k is not None:
            given["top_k"] = max(0, self.top_k)
        for name in defaults.__struct_fields__:
            if given[name] is None:
                given[name] = getattr(defaults, name)
        return Sampling(**{name: value for name, value in given.items() if value is not None})

    def grammar(self, settings: Settings) -> Grammar | None:
        """The grammar that the completion has to match. Raises InvalidRequest."""
        guided = [
            name
            for name in ("guided_json", "guided_regex", "guided_grammar", "guided_choice")
            if getattr(self, name) is not None
        ]
        form = self.response_format.grammar(settings) if self.response_format else None
        if len(guided) + (form is not None) > 1:
            raise InvalidRequest(
                f"{' and '.join(guided)} cannot be combined"
                f"{' with response_format' if form else ''}.",
                param=guided[0],
            )
        if self.guided_json is not None:
            return schema_grammar(self.guided_json, "guided_json", settings, is_strict=True)
        if self.guided_choice is not None:
            return choice_grammar(self.guided_choice, "guided_choice", settings)
        source = self.guided_regex or self.guided_grammar
        if source is None:
            return form
        kind = GrammarKind.REGEX if self.guided_regex else GrammarKind.LARK
        return text_grammar(kind, source, guided[0], settings)


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: list[ToolParam] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    """Passed to the chat template as `reasoning_effort`; `none` also clears `enable_thinking`."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Extension: more variables of the chat template, such as `enable_thinking`."""

    @property
    def num_logprobs(self) -> int | None:
        """Raises InvalidRequest."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def template_arguments(self) -> dict[str, Any]:
        arguments = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            arguments["reasoning_effort"] = self.reasoning_effort
        if self.reasoning_effort == "none":
            # The names that templates have for it.
            arguments = {"enable_thinking": False, "thinking": False} | arguments
        return arguments


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """Body of `POST /v1/completions`."""

    prompt: str | list[Any]
    max_tokens: NotNegative | None = None
    """16 by default, as at OpenAI; 0 only with `echo`."""
    logprobs: TopLogprobs | None = None
    echo: bool | None = None
    suffix: str | None = None
    """For models that were trained to fill gaps."""
    best_of: Positive | None = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts as texts or token ids. Raises InvalidRequest."""
        return texts_or_tokens(self.prompt, "prompt")

    @property
    def num_generated(self) -> int:
        """Completions generated for each prompt. Raises InvalidRequest."""
        best_of = self.best_of or self.num_choices
        if best_of < self.num_choices:
            raise InvalidRequest("best_of must not be smaller than n.", param="best_of")
        if best_of > self.num_choices and self.is_stream:
            raise InvalidRequest("With best_of the answer cannot be streamed.", param="best_of")
        return best_of


def texts_or_tokens(value: str | list[Any], param: str) -> list[str | list[int]]:
    """One text or token list, or several. Raises InvalidRequest."""
    if isinstance(value, str):
        return [value]
    for shape in (list[str], TokenIds, list[TokenIds]):
        try:
            found: Any = msgspec.convert(value, shape)
        except msgspec.ValidationError:
            continue
        if found:
            return [found] if shape is TokenIds else found
    raise InvalidRequest(
        f"{param} must be a string, a list of strings, a list of token ids "
        "or a list of lists of token ids, and not empty.",
        param=param,
    )
