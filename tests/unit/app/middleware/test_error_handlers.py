"""Every exception has OpenAI's shape."""

import pytest
import redis
from flask.testing import FlaskClient

from tests.support import web_app


@pytest.fixture
def client() -> FlaskClient:
    return web_app.made().test_client()


def test_an_unknown_path_is_named(client: FlaskClient) -> None:
    answer = client.get("/nowhere")
    assert answer.status_code == 404
    assert "GET /nowhere" in answer.json["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path", ["/v1//chat/completions", "//v1//models", "/v1/models//m", "/healthz//", "/static//a"]
)
def test_a_double_slash_is_unknown_and_no_redirect(
    client: FlaskClient, method: str, path: str
) -> None:
    answer = client.open("/", method=method, environ_overrides={"PATH_INFO": path})
    assert answer.status_code == 404
    assert answer.json["error"]["code"] == "unknown_url"
    assert "empty segment" in answer.json["error"]["message"]


def test_slashes_before_a_path_are_dropped(client: FlaskClient) -> None:
    assert client.open("/", environ_overrides={"PATH_INFO": "//healthz"}).status_code == 200
    assert client.open("/", environ_overrides={"PATH_INFO": "//evil/"}).status_code == 404


def test_no_rule_ends_in_a_slash(client: FlaskClient) -> None:
    """Without one, such a rule would be a redirect to it."""
    rules = [str(rule) for rule in client.application.url_map.iter_rules()]
    assert [rule for rule in rules if rule.endswith("/")] == ["/"]


def test_a_method_that_is_not_allowed_has_those_that_are(client: FlaskClient) -> None:
    answer = client.delete("/v1/models")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert answer.json["error"]["message"] == "DELETE is not allowed for /v1/models."


def test_what_a_view_raises_becomes_an_answer_with_its_headers(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises() -> None:
        raise redis.ConnectionError("away")

    monkeypatch.setitem(client.application.view_functions, "models.list_models", raises)
    answer = client.get("/v1/models")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert answer.headers["x-request-id"]
    assert answer.json["error"]["message"].startswith("The queue is not reachable")
