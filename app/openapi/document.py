"""The OpenAPI 3.1 document of the routes, as `app.openapi.documented` declares them.

Built once, when the application is made, from the types that check requests and shape answers. Of
the machine and its settings it reveals one thing: whether a key is needed.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from flask import Flask
from werkzeug.routing import Rule

from app.auth.scopes import scope_of
from app.jobs import prompt_filter
from app.jobs.rate_limit_headers import RATES, header
from app.openapi.components import Components
from app.openapi.documented import JSON, RouteDocument, documents
from app.schemas.parse import IGNORED, REFUSED
from shared.api_keys import Scope
from shared.errors import (
    ErrorAnswer,
    Forbidden,
    LlmisError,
    QueueUnavailable,
    TooManyRequests,
    Unauthorized,
)
from shared.version import VERSION

_EVENT_STREAM = "text/event-stream"
_TAGS = {
    **dict.fromkeys(("admin", "restarts"), "Administration"),
    **dict.fromkeys(("health", "prometheus_metrics"), "Service"),
}
"""Blueprint, or endpoint without one → part of the API; all others are inference."""
_RETRY_STATUSES = (429, 503, 507)
"""Errors with these statuses have the header `Retry-After`."""
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
"""Errors of routes that need a key."""
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
    "WWW-Authenticate": {"description": "How to bring an API key.", "schema": {"type": "string"}},
}
_JOB_HEADERS: dict[str, Any] = {
    prompt_filter.HEADER: {
        "description": "Rules of the denylist that are in the prompt and only tag it, by name.",
        "schema": {"type": "string"},
    },
    "x-llmis-queue-position": {
        "description": "Requests that were before this one in the queue when it was admitted.",
        "schema": {"type": "integer", "minimum": 0},
    },
    **{
        header(part, rate): {"description": what, "schema": {"type": of_type}}
        for rate in RATES
        for part, what, of_type in (
            ("limit", "A minute; absent when there is no such limit.", "integer"),
            ("remaining", "What is left of it.", "integer"),
            ("reset", "Until it is full again, such as 20ms, 1.5s or 6m0s.", "string"),
        )
    },
}


def build(app: Flask) -> dict[str, Any]:
    """Make the document of all documented routes of `app`. Those without a declaration, the pages,
    are not in it."""
    asks_for_keys = app.extensions["llmis"].settings.auth
    routes = list(_documented_routes(app))
    types = [ErrorAnswer]
    for _, _, document in routes:
        types += [t for t in (document.body, document.stream, *document.answers.values()) if t]
    components = Components(types)
    for body in {document.body for _, _, document in routes if document.body}:
        _add_other_fields(components.named(body))
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


def _add_other_fields(body: dict[str, Any]) -> None:
    """Add the fields that `app.schemas.parse` ignores or refuses by name; all others are errors."""
    if "additionalProperties" in body:
        return
    body["additionalProperties"] = False
    for name, why in IGNORED.items():
        body["properties"].setdefault(name, {"description": f"Ignored: {why}."})
    for name, why in REFUSED.items():
        refused: dict[str, Any] = {"enum": [None, False, [], {}], "description": f"Refused: {why}"}
        body["properties"].setdefault(name, refused)


def _documented_routes(app: Flask) -> Iterator[tuple[Rule, Callable[..., Any], RouteDocument]]:
    for rule in app.url_map.iter_rules():
        view = app.view_functions[rule.endpoint]
        document = documents.get(view)
        if document is not None:
            yield rule, view, document


def _operation(
    rule: Rule,
    view: Callable[..., Any],
    document: RouteDocument,
    components: Components,
    scope: Scope | None,
) -> dict[str, Any]:
    errors = document.all_errors | (_KEY_ERRORS if scope is not None else frozenset())
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
    parameters = [_parameter(n, "path", document.parameters[n]) for n in sorted(rule.arguments)]
    parameters += [_parameter(name, "header", text) for name, text in document.headers.items()]
    if parameters:
        operation["parameters"] = parameters
    if document.body is not None:
        content: dict[str, Any] = {JSON: {"schema": components.schema(document.body)}}
        if document.example is not None:
            content[JSON]["example"] = document.example
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameter(name: str, place: str, description: str) -> dict[str, Any]:
    parameter: dict[str, Any] = {"name": name, "in": place, "description": description}
    if place == "path":
        return parameter | {"required": True, "schema": {"type": "string", "minLength": 1}}
    return parameter | {"schema": {"type": "string"}}


def _responses(
    document: RouteDocument, components: Components, errors: frozenset[type[LlmisError]]
) -> dict[str, Any]:
    """Status → response. One status can have an answer of its own and an error."""
    shapes: dict[int, list[Any]] = {s: [answer] for s, answer in document.answers.items()}
    texts = {status: ["The answer."] for status in document.answers}
    for error in sorted(errors, key=lambda error: (error.status, error.code or "")):
        if ErrorAnswer not in shapes.setdefault(error.status, []):
            shapes[error.status].append(ErrorAnswer)
        texts.setdefault(error.status, []).append(_text_of(error))
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
            "description": "\n".join(texts[status]),
            "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
            "content": content,
        }
    return responses


def _event(shape: Any, components: Components) -> dict[str, Any]:
    """One event of a stream, described as in OpenAPI 3.2 with the keywords of 3.1."""
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
                    {"type": "string", "contentMediaType": JSON, "contentSchema": payload},
                ]
            },
        },
    }


def _text_of(error: type[LlmisError]) -> str:
    name = f"`{error.code}`" if error.code else f"type `{error.type}`"
    doc = (error.__dict__.get("__doc__") or "").partition("\n\n")[0]
    return f"- {name}: {' '.join(doc.split())}" if doc else f"- {name}"
