"""`GET /v1/models` and `GET /v1/models/<id>`."""

from typing import Literal

from flask import Blueprint, Response
from msgspec import Struct

from app.api import json_response
from app.openapi.documented import documented
from app.schemas.parse import shortened
from app.services import services
from shared.errors import ModelNotFound, QueueUnavailable
from shared.wire.records import Capability, ModelState

blueprint = Blueprint("models", __name__)


class Model(Struct, frozen=True, kw_only=True):
    """OpenAI's model object, and what an operator wants to see with it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """Unix time in seconds of its first replica's start; 0 = none runs."""
    owned_by: str = "llmis"
    state: ModelState
    replicas: int
    context_length: int
    """Tokens per slot, prompt and completion together; 0 = not known before it is loaded."""
    capabilities: list[Capability] | None
    """What it can be asked for; null = not known before it is loaded."""


class ModelList(Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]


@blueprint.get("/v1/models")
@documented(ModelList)
def list_models() -> Response:
    """List the models that can be asked for."""
    return json_response.of(ModelList(data=[_model(n) for n in services().catalog.names()]))


@blueprint.get("/v1/models/<path:name>")
@documented(
    Model, errors=(ModelNotFound, QueueUnavailable), parameters={"name": "The model's `id`."}
)
def get_model(name: str) -> Response:
    """Show one model."""
    if not services().catalog.is_known(name):
        raise ModelNotFound(f"The model {shortened(name)} does not exist.", param="model")
    return json_response.of(_model(name))


def _model(name: str) -> Model:
    parts = services()
    replicas = parts.directory.replicas(name)
    created = min((record.started_at for record in replicas), default=0.0)
    spec = parts.settings.model(name) or parts.directory.specs().get(name)
    context_length = spec.context_length if spec else 0
    capabilities = next((r.capabilities for r in replicas if r.capabilities), None)
    return Model(
        id=name,
        created=int(created),
        state=parts.catalog.state(name),
        replicas=len(replicas),
        context_length=max((r.context_length for r in replicas), default=context_length),
        capabilities=capabilities,
    )
