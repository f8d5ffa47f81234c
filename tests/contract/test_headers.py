"""Headers of the answers of all resources: frozen in `frozen/http/headers`.

Names as they are sent, sorted; values where two runs share them.
"""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from shared import api_keys
from shared.api_keys import Scope
from tests.conftest import Service, running_service
from tests.contract import frozen_file
from tests.contract.exchange import Exchange, exchange
from tests.contract.test_openapi_bytes import canonical_document

_FOLDER = "http/headers"
_COMPLETION = {"model": "counter", "prompt": "17", "max_tokens": 2, "temperature": 0}
_CHAT = {"model": "counter", "messages": [{"role": "user", "content": "17"}], "max_tokens": 2}
_GUARD = """
auth = true
requests_per_minute = 30
tokens_per_minute = 2000
"""
_UNFROZEN = ("date", "server", "content-length", "etag", "last-modified", "x-request-id")
_COUNTS = ("x-ratelimit-remaining-", "x-llmis-queue-position", "retry-after")
_DURATIONS = ("x-ratelimit-reset-",)


class Asked(NamedTuple):
    method: str
    path: str
    body: Any = None
    headers: Mapping[str, str] = MappingProxyType({})


_REQUESTS = {
    "chat": Asked("POST", "/v1/chat/completions", _CHAT),
    "chat-stream": Asked("POST", "/v1/chat/completions", {**_CHAT, "stream": True}),
    "chat-refused": Asked("POST", "/v1/chat/completions", {"model": "counter", "messages": []}),
    "completion": Asked("POST", "/v1/completions", _COMPLETION),
    "completion-stream": Asked("POST", "/v1/completions", {**_COMPLETION, "stream": True}),
    "completion-no-json": Asked("POST", "/v1/completions", b"{"),
    "completion-unknown-model": Asked("POST", "/v1/completions", {**_COMPLETION, "model": "none"}),
    "completion-wrong-method": Asked("GET", "/v1/completions"),
    "embeddings-refused": Asked("POST", "/v1/embeddings", {"model": "counter", "input": "17"}),
    "tokenize": Asked("POST", "/tokenize", {"model": "counter", "prompt": "17"}),
    "detokenize": Asked("POST", "/detokenize", {"model": "counter", "tokens": [300]}),
    "detokenize-refused": Asked("POST", "/detokenize", {"model": "counter"}),
    "models": Asked("GET", "/v1/models"),
    "models-one": Asked("GET", "/v1/models/counter"),
    "models-none": Asked("GET", "/v1/models/none"),
    "requests-none": Asked("GET", "/v1/requests/none"),
    "requests-none-cancelled": Asked("POST", "/v1/requests/none/cancel"),
    "requests-no-such-event": Asked(
        "GET", "/v1/requests/none/events", headers={"Last-Event-ID": "other:1"}
    ),
    "requests-events-head": Asked("HEAD", "/v1/requests/none/events"),
    "websocket-no-handshake": Asked("GET", "/v1/ws"),
    "admin-models": Asked("GET", "/admin/models"),
    "admin-nodes": Asked("GET", "/admin/nodes"),
    "admin-web": Asked("GET", "/admin/web"),
    "admin-operation-none": Asked("GET", "/admin/operations/none"),
    "admin-load-refused": Asked("POST", "/admin/models/load", {"model": 5}),
    "healthz": Asked("GET", "/healthz"),
    "readyz": Asked("GET", "/readyz"),
    "version": Asked("GET", "/version"),
    "metrics": Asked("GET", "/metrics"),
    "openapi": Asked("GET", "/openapi.json"),
    "page-chat": Asked("GET", "/"),
    "page-docs": Asked("GET", "/docs"),
    "page-asset": Asked("GET", "/docs/swagger-ui.css"),
    "page-static": Asked("GET", "/static/chat.js"),
    "unknown-path": Asked("GET", "/none"),
    "unknown-host": Asked("GET", "/v1/models", headers={"Host": "evil.example"}),
    "other-origin": Asked("GET", "/v1/models", headers={"Origin": "http://evil.example"}),
    "preflight": Asked(
        "OPTIONS", "/v1/completions",
        headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _REQUESTS)
def test_of_a_request(service: Service, name: str) -> None:
    asked = _REQUESTS[name]
    found = exchange(service, asked.method, asked.path, asked.body, asked.headers)
    frozen_file.assert_frozen_exactly(f"{_FOLDER}/{name}.txt", _canonical(found))


def test_of_a_request_that_comes_twice(service: Service) -> None:
    key = {"Idempotency-Key": f"contract-{service.port}"}
    first = exchange(service, "POST", "/v1/completions", _COMPLETION, key)
    again = exchange(service, "POST", "/v1/completions", _COMPLETION, key)
    other = exchange(service, "POST", "/v1/completions", {**_COMPLETION, "n": 2}, key)
    assert again.request_id == first.request_id
    frozen_file.assert_frozen_exactly(f"{_FOLDER}/replayed.txt", _canonical(again))
    frozen_file.assert_frozen_exactly(f"{_FOLDER}/key-of-another-body.txt", _canonical(other))


def test_of_a_request_that_has_ended(service: Service) -> None:
    ended = exchange(service, "POST", "/v1/completions", _COMPLETION).request_id
    for name, method, path in (
        ("requests", "GET", ""),
        ("requests-events", "GET", "/events"),
        ("requests-cancelled", "POST", "/cancel"),
    ):
        found = exchange(service, method, f"/v1/requests/{ended}{path}")
        frozen_file.assert_frozen_exactly(f"{_FOLDER}/{name}.txt", _canonical(found))


def test_of_a_document_that_has_not_changed(service: Service) -> None:
    tag = exchange(service, "GET", "/openapi.json").header("ETag")
    found = exchange(service, "GET", "/openapi.json", headers={"If-None-Match": tag})
    frozen_file.assert_frozen_exactly(f"{_FOLDER}/openapi-not-changed.txt", _canonical(found))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with keys and limits."""
    with running_service(tmp_path_factory.mktemp("contract"), extra=_GUARD) as running:
        yield running


def _key(service: Service) -> dict[str, str]:
    """The header with a new API key."""
    key, _ = api_keys.create(service.redis, "contract", Scope.USER)
    return {"Authorization": f"Bearer {key}"}


def test_without_a_key(guarded: Service) -> None:
    found = exchange(guarded, "POST", "/v1/completions", _COMPLETION)
    frozen_file.assert_frozen_exactly(f"{_FOLDER}/no-key.txt", _canonical(found))


def test_with_a_key_that_does_not_hold(guarded: Service) -> None:
    headers = {"Authorization": "Bearer sk-none"}
    found = exchange(guarded, "POST", "/v1/completions", _COMPLETION, headers)
    frozen_file.assert_frozen_exactly(f"{_FOLDER}/wrong-key.txt", _canonical(found))


def test_with_a_key_of_another_scope(guarded: Service) -> None:
    found = exchange(guarded, "GET", "/admin/models", headers=_key(guarded))
    frozen_file.assert_frozen_exactly(f"{_FOLDER}/other-scope.txt", _canonical(found))


def test_with_limits(guarded: Service) -> None:
    key = _key(guarded)
    taken = exchange(guarded, "POST", "/v1/completions", _COMPLETION, key)
    frozen_file.assert_frozen_exactly(f"{_FOLDER}/limits.txt", _canonical(taken))
    body = {**_COMPLETION, "stream": True}
    streamed = exchange(guarded, "POST", "/v1/completions", body, key)
    frozen_file.assert_frozen_exactly(f"{_FOLDER}/limits-stream.txt", _canonical(streamed))
    tokens = {**_COMPLETION, "n": 2, "max_tokens": 900}
    refused = taken
    for _ in range(5):
        refused = exchange(guarded, "POST", "/v1/completions", tokens, key)
        if refused.status != 200:
            break
    frozen_file.assert_frozen_exactly(f"{_FOLDER}/limits-exceeded.txt", _canonical(refused))


def test_the_document_of_a_service_with_keys(guarded: Service) -> None:
    document = exchange(guarded, "GET", "/openapi.json").body
    frozen_file.assert_frozen_exactly("http/openapi-with-keys.json", canonical_document(document))


def _canonical(found: Exchange) -> str:
    lines = sorted(
        (f"{name}: {_value(name.lower(), value, found)}" for name, value in found.headers),
        key=str.lower,
    )
    return "\n".join([str(found.status), *lines]) + "\n"


def _value(name: str, value: str, found: Exchange) -> str:
    """The value, or a placeholder for one that two runs do not share."""
    if name in _UNFROZEN:
        return "<any>"
    if name.startswith(_COUNTS):
        assert re.fullmatch(r"\d+", value), f"{name}: {value}"
        return "<count>"
    if name.startswith(_DURATIONS):
        assert re.fullmatch(r"\d+ms|(\d+m)?\d+(\.\d+)?s", value), f"{name}: {value}"
        return "<duration>"
    if name == "allow":
        return ", ".join(sorted(value.split(", ")))
    return value
