"""`GET /openapi.json`: the OpenAPI 3.1 document of the routes, as `app.documented` declares them.

Built once, when the application is made, from the types that check the requests and shape the
answers. Of the machine and its settings it tells one thing: whether a key is needed.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from flask import Blueprint, Flask, Response, current_app, request
from werkzeug.routing import Rule

from app import filtering
from app.access import scope_of
from app.documented import JSON, RouteDocument, document_of
from app.error_answer import ErrorAnswer
from app.parameters import IGNORED, REFUSED
from app.schema_components import Components
from shared.api_keys import Scope
from shared.errors import (
    Forbidden,
    LlmisError,
    QueueUnavailable,
    TooManyRequests,
    Unauthorized,
)
from shared.version import VERSION

blueprint = Blueprint("openapi", __name__)
_EVENT_STREAM = "text/event-stream"
_TAGS = {"admin": "Administration", "health": "Service", "prometheus_metrics": "Service"}
"""Blueprint, or endpoint without one → part of the API; all others are inference."""
_RETRY_STATUSES = (429, 503, 507)
"""Their errors say when to come back."""
_DESCRIPTION = """\
An OpenAI-compatible service for large language models. Any request may carry `x-request-id`; every
answer has it. `WS /v1/ws` carries the same requests over one connection: see docs/protocol.md."""
_SECURITY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key, or a token of the issuer that the service trusts.",
}
_KEY_ERRORS: frozenset[type[LlmisError]] = frozenset(
    {Unauthorized, TooManyRequests, QueueUnavailable, Forbidden}
)
"""Of routes that need a key."""
_HEADERS = {
    "x-request-id": {
        "description": "Names the request in logs and for cancelling: the client's own, if it "
        "sent a usable one.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "WWW-Authenticate": {
        "description": "How to bring an API key.",
        "schema": {"type": "string"},
    },
}
_JOB_HEADERS: dict[str, Any] = {
    filtering.HEADER: {
        "description": "Rules of the denylist that are in the prompt and only tag it, by name.",
        "schema": {"type": "string"},
    },
    "x-llmis-queue-position": {
        "description": "Requests that were before this one in the queue when it was admitted.",
        "schema": {"type": "integer", "minimum": 0},
    },
    **{
        f"x-ratelimit-{part}-{rate}": {"description": what, "schema": {"type": of_type}}
        for rate in ("requests", "tokens")
        for part, what, of_type in (
            ("limit", "A minute; absent when there is no such limit.", "integer"),
            ("remaining", "What is left of it.", "integer"),
            ("reset", "Until it is full again, such as 20ms, 1.5s or 6m0s.", "string"),
        )
    },
}


def register(app: Flask) -> None:
    """Add the route, and make its document of the routes that `app` has by now."""
    app.extensions["llmis_openapi"] = msgspec.json.encode(build(app))
    app.register_blueprint(blueprint)


@blueprint.get("/openapi.json")
def show() -> Response:
    response = Response(current_app.extensions["llmis_openapi"], content_type=JSON)
    response.headers["Cache-Control"] = "no-cache"
    response.add_etag()
    response.make_conditional(request)
    return response


def build(app: Flask) -> dict[str, Any]:
    """Make the document of the routes that are documented."""
    asks_for_keys = app.extensions["llmis"].settings.auth
    routes = list(_documented_routes(app))
    types = [ErrorAnswer]
    for _, _, document in routes:
        types += [t for t in (document.body, document.stream, *document.answers.values()) if t]
    components = Components(types)
    for body in {document.body for _, _, document in routes if document.body}:
        _name_what_has_no_effect(components.named(body))
    paths: dict[str, Any] = {}
    for rule, view, document in routes:
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            scope = scope_of(rule.rule) if asks_for_keys else None
            operation = _operation(rule, view, document, components, scope)
            paths.setdefault(path, {})[method.lower()] = operation
    security = {"securitySchemes": {"key": _SECURITY_SCHEME}} if asks_for_keys else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "llmis", "version": VERSION, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in ("Inference", "Administration", "Service")],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": components.schemas,
            "headers": _HEADERS | _JOB_HEADERS,
            **security,
        },
    }


def _name_what_has_no_effect(body: dict[str, Any]) -> None:
    """Add what `app.parsing` takes besides a type's own fields; it refuses all else."""
    if "additionalProperties" in body:
        return
    body["additionalProperties"] = False
    for name, why in IGNORED.items():
        body["properties"].setdefault(name, {"description": f"Ignored: {why}."})
    for name, why in REFUSED.items():
        refused: dict[str, Any] = {"enum": [None, False, [], {}], "description": f"Refused: {why}"}
        body["properties"].setdefault(name, refused)


def _documented_routes(
    app: Flask,
) -> Iterator[tuple[Rule, Callable[..., Any], RouteDocument]]:
    for rule in app.url_map.iter_rules():
        view = app.view_functions[rule.endpoint]
        document = document_of(view)
        if document is not None:
            yield rule, view, document


def _operation(
    rule: Rule,
    view: Callable[..., Any],
    document: RouteDocument,
    components: Components,
    scope: Scope | None,
) -> dict[str, Any]:
    errors = document.errors | (_KEY_ERRORS if scope is not None else frozenset())
    summary, _, description = (inspect.getdoc(view) or "").partition("\n\n")
    operation: dict[str, Any] = {
        "operationId": rule.endpoint.replace(".", "_"),
        "summary": summary.rstrip("."),
        "tags": [_TAGS.get(rule.endpoint.partition(".")[0], "Inference")],
        "responses": _responses(document, components, errors),
    }
    if scope is not None:
        operation["security"] = [{"key": []}]
    if description:
        operation["description"] = description
    parameters = [_path_parameter(n, document.parameters[n]) for n in sorted(rule.arguments)]
    parameters += [_header(name, words) for name, words in document.headers.items()]
    if parameters:
        operation["parameters"] = parameters
    if document.body is not None:
        content: dict[str, Any] = {JSON: {"schema": components.schema(document.body)}}
        if document.example is not None:
            content[JSON]["example"] = document.example
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _path_parameter(name: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", "minLength": 1},
    }


def _header(name: str, description: str) -> dict[str, Any]:
    schema = {"type": "string"}
    return {"name": name, "in": "header", "description": description, "schema": schema}


def _responses(
    document: RouteDocument, components: Components, errors: frozenset[type[LlmisError]]
) -> dict[str, Any]:
    """Status → response. A status can have an answer of its own and be an error as well."""
    shapes: dict[int, list[Any]] = {s: [answer] for s, answer in document.answers.items()}
    words = {status: ["The answer."] for status in document.answers}
    for error in sorted(errors, key=lambda error: (error.status, error.code or "")):
        if ErrorAnswer not in shapes.setdefault(error.status, []):
            shapes[error.status].append(ErrorAnswer)
        words.setdefault(error.status, []).append(_words(error))
    responses = {}
    for status in sorted(shapes):
        schemas = [components.schema(shape) for shape in shapes[status]]
        media_type = document.media_type if status in document.answers else JSON
        content = {media_type: {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}}
        if status == 200 and document.stream is not None:
            content[_EVENT_STREAM] = {"schema": _event(document.stream, components)}
        headers = ["x-request-id"] + ["Retry-After"] * (status in _RETRY_STATUSES)
        headers += ["WWW-Authenticate"] * (status == 401)
        headers += list(_JOB_HEADERS) if TooManyRequests in document.errors else []
        responses[str(status)] = {
            "description": "\n".join(words[status]),
            "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
            "content": content,
        }
    return responses


def _event(shape: Any, components: Components) -> dict[str, Any]:
    """One event, as OpenAPI 3.2 describes them in words that 3.1 has, too."""
    payload = {"anyOf": [components.schema(shape), components.schema(ErrorAnswer)]}
    return {
        "type": "object",
        "description": "One event. The last one's data is `[DONE]`, or the error that ended it.",
        "required": ["data"],
        "properties": {
            "id": {"type": "string", "description": "What `Last-Event-ID` takes."},
            "data": {
                "anyOf": [
                    {"const": "[DONE]"},
                    {
                        "type": "string",
                        "contentMediaType": JSON,
                        "contentSchema": payload,
                    },
                ]
            },
        },
    }


def _words(error: type[LlmisError]) -> str:
    name = f"`{error.code}`" if error.code else f"type `{error.type}`"
    doc = (error.__dict__.get("__doc__") or "").partition("\n\n")[0]
    return f"- {name}: {' '.join(doc.split())}" if doc else f"- {name}"
