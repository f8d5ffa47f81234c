"""The OpenAPI document: valid, whole, and of the same types as the service itself."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import openapi_spec_validator
import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.openapi.documented import documents
from shared import errors
from tests.support import web_app

ROOT = Path(__file__).parent.parent.parent
_NOT_FOR_CLIENTS = {
    *("/", "/static/<path:filename>", "/docs", "/openapi.json", "/v1/ws"),
    "/docs/<any('swagger-ui.css', 'swagger-ui-bundle.js'):name>",
}
"""Pages and their files; and the WebSocket, which OpenAPI has no words for."""

_ERRORS = [
    error_class
    for error_class in vars(errors).values()
    if isinstance(error_class, type) and issubclass(error_class, errors.LlmisError)
]


@pytest.fixture(scope="module")
def app() -> Flask:
    return web_app.made()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def document(client: FlaskClient) -> dict[str, Any]:
    answer = client.get("/openapi.json")
    assert answer.content_type == "application/json"
    return json.loads(answer.data)


def _check(document: dict[str, Any], name: str, value: Any) -> None:
    """Raise when a value does not fit the schema of that name."""
    schema = {**document, "$ref": f"#/components/schemas/{name}"}
    jsonschema_rs.validate(schema, json.loads(msgspec.json.encode(value)))


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    openapi_spec_validator.validate(document)


def test_every_route_is_documented(app: Flask) -> None:
    for rule in app.url_map.iter_rules():
        if rule.rule not in _NOT_FOR_CLIENTS:
            view = app.view_functions[rule.endpoint]
            assert view in documents, f"{rule.rule}: decorate it with @documented"
            assert view.__doc__, f"{rule.rule}: its docstring becomes the operation's summary"
            assert rule.arguments == set(documents[view].parameters), rule.rule


def test_every_documented_view_has_a_route(app: Flask) -> None:
    routed = set(app.view_functions.values())
    for view in documents:
        assert view in routed, f"{view.__qualname__} has no route"


def test_every_reference_leads_somewhere_and_every_schema_is_used(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    for name in document["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text, name
        assert not name.startswith("_")


def test_a_stream_is_documented_with_its_chunk(document: dict[str, Any]) -> None:
    for path, name in {
        "/v1/chat/completions": "ChatCompletionChunk",
        "/v1/completions": "CompletionChunk",
        "/admin/models/load": "Operation",
    }.items():
        content = document["paths"][path]["post"]["responses"]["200"]["content"]
        _done, event = content["text/event-stream"]["schema"]["properties"]["data"]["anyOf"]
        assert {"$ref": f"#/components/schemas/{name}"} in event["contentSchema"]["anyOf"]


def test_every_answer_has_the_request_id_and_some_say_when_to_come_back(
    document: dict[str, Any],
) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                expected = {"x-request-id"} | (
                    {"Retry-After"} if status in "429 503 507" else set()
                )
                found = {name for name in response["headers"] if not _is_of_jobs(name)}
                assert found == expected, (path, status)


def _is_of_jobs(header: str) -> bool:
    return header.startswith("x-ratelimit-") or header.startswith("x-llmis-")


def test_answers_of_what_waits_in_the_queue_tell_limits_and_place(document: dict[str, Any]) -> None:
    with_limits = {
        path
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if any(map(_is_of_jobs, operation["responses"].get("200", {}).get("headers", [])))
    }
    assert with_limits == {
        *("/v1/chat/completions", "/v1/completions", "/v1/embeddings"),
        *("/tokenize", "/detokenize", "/tokenizer_info"),
    }
    headers = document["paths"]["/v1/completions"]["post"]["responses"]["429"]["headers"]
    assert "x-ratelimit-remaining-tokens" in headers and "Retry-After" in headers


def test_an_error_says_when_to_come_back_where_the_document_has_it() -> None:
    for error_class in _ERRORS:
        says_when = error_class("words").retry_after_s is not None
        assert says_when == (error_class.status in (429, 503, 507)), error_class


def test_errors_fit_their_schema(document: dict[str, Any]) -> None:
    for error_class in _ERRORS:
        _check(document, "ErrorAnswer", error_class("words", param="n").body())


def test_fields_are_described_by_their_docstrings(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    described = schemas["LoadRequest"]["properties"]["path"]["description"]
    assert described == "Under the model folder of the nodes."


def test_patterns_are_those_of_javascript(document: dict[str, Any]) -> None:
    assert "\\\\Z" not in json.dumps(document)


def test_the_document_says_nothing_of_the_machine(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    assert str(ROOT) not in text
    assert "redis://" not in text
    assert "127.0.0.1" not in text


def test_an_unchanged_document_is_not_sent_again(client: FlaskClient) -> None:
    tag = client.get("/openapi.json").headers["ETag"]
    again = client.get("/openapi.json", headers={"If-None-Match": tag})
    assert (again.status_code, again.data) == (304, b"")
    assert client.get("/openapi.json", headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_page_asks_no_other_host(client: FlaskClient) -> None:
    page = client.get("/docs")
    policy = page.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    text = page.get_data(as_text=True)
    assert "http" not in text
    for name in ("swagger-ui.css", "swagger-ui-bundle.js"):
        assert client.get(f"/docs/{name}").status_code == 200
    assert client.get("/docs/index.html").status_code == 404
