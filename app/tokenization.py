"""`POST /tokenize` and `POST /detokenize`, with vLLM's bodies."""

from typing import Any

import msgspec
from flask import Blueprint, Flask, Response
from msgspec import Struct

from app import whole_jobs
from app.generation import read_body
from app.parsing import parse
from app.schemas import TokenId
from app.services import services
from shared.messages import Delta, Event, Finished, JobKind

blueprint = Blueprint("tokenization", __name__)


def register(app: Flask) -> None:
    app.register_blueprint(blueprint)


class TokenizeRequest(Struct, frozen=True, kw_only=True):
    """Body of `POST /tokenize`."""

    model: str
    prompt: str
    add_special_tokens: bool | None = None
    """None = true: the tokens that begin and end every text are counted in."""
    return_token_strs: bool | None = None


class DetokenizeRequest(Struct, frozen=True, kw_only=True):
    """Body of `POST /detokenize`."""

    model: str
    tokens: list[TokenId]


@blueprint.post("/tokenize")
def tokenize() -> Response:
    body = parse(read_body(), TokenizeRequest)
    add_special = body.add_special_tokens is not False
    job = whole_jobs.new_job(body.model, JobKind.TOKENIZE, [body.prompt], add_special=add_special)
    return whole_jobs.run(job, _TokenizeAnswer(body))


@blueprint.post("/detokenize")
def detokenize() -> Response:
    body = parse(read_body(), DetokenizeRequest)
    job = whole_jobs.new_job(body.model, JobKind.DETOKENIZE, [body.tokens])
    return whole_jobs.run(job, _DetokenizeAnswer())


class _TokenizeAnswer:
    def __init__(self, body: TokenizeRequest) -> None:
        self._body = body
        self._token_ids: list[int] = []
        self._texts = b"null"
        """A JSON array: the replica's, passed on as it is."""

    def take(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._token_ids = event.token_ids
            if self._body.return_token_strs:
                self._texts = event.text.encode()

    def body(self, finished: Finished) -> Any:
        replicas = services().directory.replicas(self._body.model)
        return {
            "count": len(self._token_ids),
            "max_model_len": max((r.context_length for r in replicas), default=0),
            "tokens": self._token_ids,
            "token_strs": msgspec.Raw(self._texts),
        }


class _DetokenizeAnswer:
    def __init__(self) -> None:
        self._text = ""

    def take(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._text = event.text

    def body(self, finished: Finished) -> Any:
        return {"prompt": self._text}
