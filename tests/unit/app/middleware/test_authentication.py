"""Which routes are open: those that are meant to be, and no others."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import openapi_spec_validator
import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from app.auth.authenticator import Authenticator
from app.auth.scopes import scope_of
from app.middleware import authentication
from app.openapi import document as openapi
from shared.api_keys import ApiKey, Scope, digest
from shared.registry.directory import Directory
from shared.settings.fields import Settings
from tests.support import web_app

_OPEN = {
    *("/", "/static/<path:filename>", "/healthz", "/readyz", "/version", "/openapi.json"),
    *("/health", "/ping", "/v1/health"),
    *("/docs", "/docs/<any('swagger-ui.css', 'swagger-ui-bundle.js'):name>"),
}


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Flask:
    """The routes of a service that asks for keys and knows none."""
    made = web_app.made()
    settings = Settings(auth=True)
    client = redis.Redis(port=1)
    authenticator = Authenticator(settings, client, Directory(client))
    parts = SimpleNamespace(settings=settings, authenticator=authenticator)
    monkeypatch.setitem(made.extensions, "llmis", parts)
    return made


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def _guarded(app: Flask) -> Iterator[tuple[str, str]]:
    """Method and path of every way to a route that is not open; the WebSocket has its own."""
    for rule in app.url_map.iter_rules():
        if rule.rule not in _OPEN | {"/v1/ws"}:
            path = rule.rule.replace("<", "").replace(">", "")
            yield from ((method, path) for method in (rule.methods or set()) - {"OPTIONS"})


def test_the_open_routes_are_these(app: Flask) -> None:
    assert {r.rule for r in app.url_map.iter_rules() if scope_of(r.rule) is None} == _OPEN


def test_a_key_for_metrics_opens_nothing_else(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ApiKey(id="key-1", name="p", scope=Scope.METRICS, shown="sk-", created_at=0.0)
    authenticator = app.extensions["llmis"].authenticator
    monkeypatch.setattr(authenticator, "_keys", {digest("sk-metrics"): key})
    header = {"Authorization": "Bearer sk-metrics"}
    opened = []
    for method, path in _guarded(app):
        if path == "/metrics":
            opened.append(method)
            continue
        answer = client.open(path, method=method, headers=header)
        assert answer.status_code == 403, (method, path)
        if method != "HEAD":
            assert answer.json["error"]["code"] == "insufficient_scope"
    assert sorted(opened) == ["GET", "HEAD"]
    assert client.get("/v1/ws", headers=header).status_code == 403
    with app.test_request_context("/metrics", headers=header):
        authentication._authenticate()


def test_without_a_key_no_other_route_answers(app: Flask, client: FlaskClient) -> None:
    asked = list(_guarded(app))
    assert ("POST", "/admin/models/load") in asked
    for method, path in asked:
        answer = client.open(path, method=method)
        assert answer.status_code == 401, (method, path)
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path",
    ["/unknown", "/v1", "//admin/models", "/admin/models/", "/./admin/models", "/docs/../metrics"],
)
def test_odd_paths_lead_nowhere(client: FlaskClient, path: str) -> None:
    assert client.get(path, follow_redirects=True).status_code == 401


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer ", "Basic bGxtaXM6eA==", "sk-llmis-x", "bearer\tsk", ""]
)
def test_what_is_no_bearer_key_is_missing_one(client: FlaskClient, header: str) -> None:
    answer = client.get("/v1/models", headers={"Authorization": header})
    assert (answer.status_code, answer.json["error"]["code"]) == (401, "invalid_api_key")


def test_a_browser_may_ask_whether_it_may_send_a_key(client: FlaskClient) -> None:
    assert client.options("/v1/chat/completions").status_code == 200


def test_the_document_says_where_a_key_is_needed(app: Flask) -> None:
    document: dict[str, Any] = openapi.build(app)
    openapi_spec_validator.validate(document)
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for operation in operations.values():
            is_open = path in _OPEN
            assert ("security" in operation) is not is_open, path
            assert ("401" in operation["responses"]) is not is_open, path
            refusals = operation["responses"]["403"]["description"]
            assert ("insufficient_scope" in refusals) is not is_open, path
