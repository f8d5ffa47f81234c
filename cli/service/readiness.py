"""Whether the service that `llmis up` started is ready. No answer yet is not an error here."""

from http import HTTPStatus
from typing import Any

from cli.client import ServiceClient, view
from cli.errors import CliError, Unreachable
from shared.admin_api import AdminModel, AdminModelList


def web_answers(client: ServiceClient) -> bool:
    return _is_ok(client, "/healthz")


def find_model(client: ServiceClient, name: str) -> AdminModel | None:
    """The model with its load or failure; None while the service does not list it."""
    try:
        models = view(client.get("/admin/models"), AdminModelList).data
    except CliError:
        return None
    return next((model for model in models if model.id == name), None)


def model_answers(client: ServiceClient, name: str) -> bool:
    """Ask the model for one token, or for a vector, as it may be an embedding model."""
    questions: dict[str, dict[str, Any]] = {
        "/v1/completions": {"model": name, "prompt": "1", "max_tokens": 1},
        "/v1/embeddings": {"model": name, "input": "1"},
    }
    return any(_is_ok(client, path, body) for path, body in questions.items())


def _is_ok(client: ServiceClient, path: str, body: dict[str, Any] | None = None) -> bool:
    try:
        return client.status(path, body) == HTTPStatus.OK
    except Unreachable:
        return False
