"""`POST /v1/embeddings`."""

import base64
import math
import struct
from functools import partial
from typing import Any, Literal, cast

import msgspec
from flask import Blueprint, Response
from msgspec import Struct

from app.api import json_response
from app.api.admission import admit
from app.middleware.body import read_body
from app.openapi.documented import documented
from app.openapi.error_sets import JOB_ERRORS
from app.schemas.generation import Positive, texts_or_tokens
from app.schemas.parse import parse
from app.services import services
from shared.errors import InvalidRequest
from shared.wire.events import Embedding, Event, Finished
from shared.wire.job import JobKind

blueprint = Blueprint("embeddings", __name__)


class EmbeddingRequest(Struct, frozen=True, kw_only=True):
    """Body of `POST /v1/embeddings`."""

    model: str
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None
    """Number of leading values to keep; they are scaled to length 1 again."""
    user: str | None = None
    """Accepted; the end user's identity is not used."""

    def inputs(self) -> list[str | list[int]]:
        """The inputs as texts or token ids, none of them empty. Raises InvalidRequest."""
        inputs = texts_or_tokens(self.input, "input")
        if "" in inputs:
            raise InvalidRequest("input must not have an empty string in it.", param="input")
        return inputs


class EmbeddingObject(Struct, kw_only=True):
    """One input's embedding."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: tuple[float, ...] | str
    """Numbers, or with `encoding_format` base64 the bytes of float32 values."""


class EmbeddingUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Struct, kw_only=True):
    """The embeddings of the inputs, in their order."""

    object: Literal["list"] = "list"
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingUsage


@blueprint.post("/v1/embeddings")
@documented(
    EmbeddingList,
    body=EmbeddingRequest,
    example={"model": "embedder", "input": ["a text", "another one"]},
    errors=JOB_ERRORS,
)
def embeddings() -> Response:
    """Turn texts into vectors."""
    body = parse(read_body(), EmbeddingRequest)
    inputs = body.inputs()
    max_inputs = services().settings.max_inputs
    if len(inputs) > max_inputs:
        raise InvalidRequest(
            f"input has {len(inputs)} entries; at most {max_inputs} are taken. "
            "Send the others with another request.",
            param="input",
        )
    build = partial(services().job_builder.other, body.model, JobKind.EMBEDDING, inputs)
    return json_response.respond(admit(build), EmbeddingAnswer(body, len(inputs)))


class EmbeddingAnswer:
    """OpenAI's list of embeddings. See `app.api.json_response.Answer`."""

    def __init__(self, body: EmbeddingRequest, num_inputs: int) -> None:
        self._body = body
        self._items: list[msgspec.Raw] = [msgspec.Raw()] * num_inputs

    def take(self, event: Event) -> None:
        """Encode each vector as it comes: all at once would hold up other requests."""
        if isinstance(event, Embedding):
            self._items[event.index] = self._item(event.index, event.vector)

    def _item(self, index: int, vector: bytes) -> msgspec.Raw:
        if self._body.dimensions is not None:
            vector = shorten(vector, self._body.dimensions)
        embedding: Any = (
            base64.b64encode(vector).decode()
            if self._body.encoding_format == "base64"
            else _floats(vector)
        )
        return msgspec.Raw(msgspec.json.encode(EmbeddingObject(index=index, embedding=embedding)))

    def body(self, finished: Finished) -> Any:
        num_tokens = finished.usage.prompt_tokens
        return EmbeddingList(
            data=cast("list[EmbeddingObject]", self._items),  # encoded already
            model=self._body.model,
            usage=EmbeddingUsage(num_tokens, num_tokens),
        )


def shorten(vector: bytes, dimensions: int) -> bytes:
    """The first values of a float32 vector, scaled to length 1. Raises InvalidRequest."""
    values = _floats(vector)
    if dimensions > len(values):
        raise InvalidRequest(
            f"dimensions is {dimensions}, but this model's embeddings have {len(values)} values: "
            "fewer may be asked for, not more.",
            param="dimensions",
        )
    if dimensions == len(values):
        return vector
    kept = values[:dimensions]
    length = math.hypot(*kept) or 1.0
    return struct.pack(f"<{dimensions}f", *(value / length for value in kept))


def _floats(vector: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(vector) // 4}f", vector)
