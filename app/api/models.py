"""`GET /v1/models` and `GET /v1/models/<id>`."""

from typing import Literal

import msgspec
from flask import Blueprint, Flask, Response
from msgspec import Struct

from app.catalog import ModelState
from app.documented import documented
from app.parsing import shortened
from app.services import services
from shared.errors import ModelNotFound, QueueUnavailable
from shared.messages import Capability

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


def register(app: Flask) -> None:
    app.register_blueprint(blueprint)


@blueprint.get("/v1/models")
@documented(ModelList)
def list_models() -> Response:
    """List the models that can be asked for."""
    body = ModelList(data=[_model(name) for name in services().catalog.names()])
    return Response(msgspec.json.encode(body), content_type="application/json")


@blueprint.get("/v1/models/<path:name>")
@documented(
    Model,
    errors=(ModelNotFound, QueueUnavailable),
    parameters={"name": "The model's `id`."},
)
def get_model(name: str) -> Response:
    """Show one model."""
    if not services().catalog.is_known(name):
        raise ModelNotFound(f"The model {shortened(name)} does not exist.", param="model")
    return Response(msgspec.json.encode(_model(name)), content_type="application/json")


def _model(name: str) -> Model:
    shared = services()
    replicas = shared.directory.replicas(name)
    created = min((record.started_at for record in replicas), default=0.0)
    spec = shared.settings.model(name) or shared.directory.specs().get(name)
    context_length = spec.context_length if spec else 0
    capabilities = next((r.capabilities for r in replicas if r.capabilities), None)
    return Model(
        id=name,
        created=int(created),
        state=shared.catalog.state(name),
        replicas=len(replicas),
        context_length=max((r.context_length for r in replicas), default=context_length),
        capabilities=capabilities,
    )
