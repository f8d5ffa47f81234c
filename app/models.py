"""`GET /v1/models` and `GET /v1/models/<id>`."""

from typing import Any

import msgspec
from flask import Blueprint, Flask, Response

from app.parsing import shortened
from app.services import services
from shared.errors import ModelNotFound

blueprint = Blueprint("models", __name__)


def register(app: Flask) -> None:
    app.register_blueprint(blueprint)


@blueprint.get("/v1/models")
def list_models() -> Response:
    shared = services()
    body = {"object": "list", "data": [_model_object(name) for name in shared.catalog.names()]}
    return Response(msgspec.json.encode(body), content_type="application/json")


@blueprint.get("/v1/models/<path:name>")
def get_model(name: str) -> Response:
    if not services().catalog.is_known(name):
        raise ModelNotFound(f"The model {shortened(name)} does not exist.", param="model")
    return Response(msgspec.json.encode(_model_object(name)), content_type="application/json")


def _model_object(name: str) -> dict[str, Any]:
    """OpenAI's model object, and what an operator wants to see with it."""
    shared = services()
    replicas = shared.directory.replicas(name)
    created = min((record.started_at for record in replicas), default=0.0)
    spec = shared.settings.model(name) or shared.directory.specs().get(name)
    context_length = spec.context_length if spec else 0
    return {
        "id": name,
        "object": "model",
        "created": int(created),
        "owned_by": "llmis",
        "state": shared.catalog.state(name),
        "replicas": len(replicas),
        "context_length": max((r.context_length for r in replicas), default=context_length),
    }
