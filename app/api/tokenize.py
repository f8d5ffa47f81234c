"""`POST /tokenize` and `POST /detokenize`, with vLLM's bodies."""

from typing import Annotated, Any, cast

import msgspec
from flask import Blueprint, Flask, Response
from msgspec import Meta, Struct

from app import whole_jobs
from app.documented import documented
from app.generation import JOB_ERRORS, read_body
from app.idempotency import admit
from app.jobs import messages_of, template_arguments_of, tools_of
from app.message_schemas import Message
from app.parsing import parse
from app.schemas import TokenId
from app.services import services
from app.tool_schemas import ToolParam
from shared.errors import InvalidRequest
from shared.messages import Delta, Event, Finished, JobKind

blueprint = Blueprint("tokenization", __name__)


def register(app: Flask) -> None:
    app.register_blueprint(blueprint)


class TokenizeRequest(Struct, frozen=True, kw_only=True):
    """Body of `POST /tokenize`."""

    model: str
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

    model: str
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
    job = whole_jobs.new_job(
        body.model,
        JobKind.TOKENIZE,
        [] if body.prompt is None else [body.prompt],
        add_special=body.add_special_tokens is not False,
        token_texts=bool(body.return_token_strs),
        messages=messages_of(body.messages or []),
        tools=tools_of(body.tools or []),
        template_arguments=template_arguments_of(body.chat_template_kwargs or {}),
    )
    return whole_jobs.respond(admit(job), _TokenizeAnswer(body))


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
    job = whole_jobs.new_job(body.model, JobKind.DETOKENIZE, [body.tokens])
    return whole_jobs.respond(admit(job), _DetokenizeAnswer())


class _TokenizeAnswer:
    def __init__(self, body: TokenizeRequest) -> None:
        self._body = body
        self._token_ids: list[int] = []
        self._texts = b"null"
        """A JSON array: the replica's, passed on as it is."""

    def take(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._token_ids = event.token_ids
            self._texts = event.text.encode()

    def body(self, finished: Finished) -> Any:
        replicas = services().directory.replicas(self._body.model)
        return Tokens(
            count=len(self._token_ids),
            max_model_len=max((r.context_length for r in replicas), default=0),
            tokens=self._token_ids,
            token_strs=cast("list[str]", msgspec.Raw(self._texts)),
        )


class _DetokenizeAnswer:
    def __init__(self) -> None:
        self._text = ""

    def take(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._text = event.text

    def body(self, finished: Finished) -> Any:
        return TokensText(self._text)
