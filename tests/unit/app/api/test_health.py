"""The probes that other servers' users have configured already."""

import logging

import pytest

from app.middleware import request_log
from tests.support import web_app


@pytest.mark.parametrize("path", ["/healthz", "/health", "/ping", "/v1/health"])
def test_a_probe_is_answered_under_every_usual_name(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = web_app.made().test_client()
    with caplog.at_level(logging.DEBUG, request_log.__name__):
        answer = client.get(path, headers={"Host": "balancer.example"})
        answer.close()
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})
    assert client.head(path).status_code == 200
    (line,) = [r for r in caplog.records if r.getMessage() == "request"][:1]
    assert line.levelno == logging.DEBUG
