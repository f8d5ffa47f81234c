"""`POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, with vLLM's bodies."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, cast

import msgspec
from flask import Blueprint, Response, request
from msgspec import Meta, Struct

from app.api import json_response
from app.api.admission import admit
from app.middleware.body import read_body
from app.openapi.documented import documented
from app.openapi.error_sets import JOB_ERRORS
from app.schemas.generation import TokenId
from app.schemas.messages import Message, continues_last
from app.schemas.parse import parse
from app.schemas.tools import ToolParam
from app.services import services
from shared.errors import InvalidRequest
from shared.wire.events import Delta, Event, Finished
from shared.wire.job import JobKind

blueprint = Blueprint("tokenization", __name__)


class TokenizeRequest(Struct, frozen=True, kw_only=True):
    """Body of `POST /tokenize`."""

    model: str | None = None
    """Null = the first configured model that generates text."""
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    """Instead of a prompt: the tokens are those of a chat with these."""
    tools: list[ToolParam] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    """None = true: the tokens that begin and end every text are counted in."""
    return_token_strs: bool | None = None


class DetokenizeRequest(Struct, frozen=True, kw_only=True):
    """Body of `POST /detokenize`."""

    model: str | None = None
    """As in `POST /tokenize`."""
    tokens: list[TokenId]


class Tokens(Struct):
    """The tokens of a text."""

    count: int
    max_model_len: int
    """Tokens per slot, prompt and completion together."""
    tokens: list[int]
    token_strs: list[str] | None
    """Their texts, with `return_token_strs`."""


class TokensText(Struct):
    """The text of tokens."""

    prompt: str


class TokenizerInfo(Struct, kw_only=True):
    """A model's tokenizer, with the names of Hugging Face's `tokenizer_config.json`."""

    model: str
    bos_token: str | None
    """Text of the token that begins a text; `POST /tokenize` without special tokens gives its id,
    as that of every control token."""
    eos_token: str | None
    pad_token: None = None
    add_bos_token: bool
    model_max_length: int
    """Tokens per slot, prompt and completion together."""
    chat_template: str | None


@blueprint.post("/tokenize")
@documented(
    Tokens,
    body=TokenizeRequest,
    example={"model": "gemma-3-270m", "prompt": "Once upon a time"},
    errors=JOB_ERRORS,
)
def tokenize() -> Response:
    """Turn a text, or the messages of a chat, into tokens."""
    body = parse(read_body(), TokenizeRequest)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("Either prompt or messages must be given.", param="prompt")
    builder = services().job_builder
    model = _model(body.model)
    build = partial(
        builder.other,
        model,
        JobKind.TOKENIZE,
        [] if body.prompt is None else [body.prompt],
        add_special=body.add_special_tokens is not False,
        token_texts=bool(body.return_token_strs),
        messages=builder.messages(body.messages or []),
        tools=builder.tools(body.tools or []),
        template_arguments=builder.template_arguments(body.chat_template_kwargs or {}),
        continues=continues_last(body.messages or []),
    )
    return json_response.respond(admit(build), _TokenizeAnswer(model))


@blueprint.post("/detokenize")
@documented(
    TokensText,
    body=DetokenizeRequest,
    example={"model": "gemma-3-270m", "tokens": [12938, 3324, 496, 990]},
    errors=JOB_ERRORS,
)
def detokenize() -> Response:
    """Turn tokens into a text."""
    body = parse(read_body(), DetokenizeRequest)
    model = _model(body.model)
    build = partial(services().job_builder.other, model, JobKind.DETOKENIZE, [body.tokens])
    return json_response.respond(admit(build), _TextAnswer(TokensText))


@blueprint.get("/tokenizer_info")
@documented(TokenizerInfo, errors=JOB_ERRORS)
def tokenizer_info() -> Response:
    """Show what clients ask of a tokenizer. The query parameter `model` names another model than
    the first configured one that generates text."""
    model = _model(request.args.get("model"))
    build = partial(services().job_builder.other, model, JobKind.TOKENIZER_INFO, [])

    def info_of(text: str) -> TokenizerInfo:
        found = msgspec.json.decode(text)
        return TokenizerInfo(model=model, model_max_length=_context_length(model), **found)

    return json_response.respond(admit(build), _TextAnswer(info_of))


def _context_length(model: str) -> int:
    replicas = services().directory.replicas(model)
    return max((replica.context_length for replica in replicas), default=0)


def _model(asked: str | None) -> str:
    """Raises InvalidRequest when there is none to take in its place."""
    model = services().catalog.first_generating() if asked is None else asked
    if model is None:
        raise InvalidRequest("Missing required parameter: model.", param="model")
    return model


class _TokenizeAnswer:
    def __init__(self, model: str) -> None:
        self._model = model
        self._token_ids: list[int] = []
        self._texts = b"null"
        """JSON array, encoded by the replica."""

    def take(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._token_ids = event.token_ids
            self._texts = event.text.encode()

    def body(self, finished: Finished) -> Any:
        return Tokens(
            count=len(self._token_ids),
            max_model_len=_context_length(self._model),
            tokens=self._token_ids,
            token_strs=cast("list[str]", msgspec.Raw(self._texts)),
        )


class _TextAnswer:
    """An answer that is made of a text, which comes as a whole."""

    def __init__(self, answer_of: Callable[[str], Any]) -> None:
        self._answer_of = answer_of
        self._text = ""

    def take(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._text = event.text

    def body(self, finished: Finished) -> Any:
        return self._answer_of(self._text)
