"""The sample for nginx: a real one in front of the service passes tokens on as they come."""

import http.client
import json
import subprocess
from collections.abc import Iterator
from socket import SHUT_RDWR
from typing import Any

import pytest
from simple_websocket import Client

from shared.settings.fields import Settings
from tests.conftest import Service, running_service, wait_for
from tests.support import nginx
from tests.support.counter_model import expected_text
from tests.support.nginx import SAMPLE, Nginx
from tests.support.paused_replica import paused

_MANY_BYTES = Settings().max_body_bytes


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Nginx]]:
    folder = tmp_path_factory.mktemp("nginx")
    named = {"LLMIS_ALLOWED_HOSTS": "llm.example.com"}
    with (
        running_service(tmp_path_factory.mktemp("llmis"), environ=named) as service,
        nginx.running(folder, service.port) as proxy,
    ):
        yield service, proxy


def _ask(
    proxy: Nginx, path: str, body: Any = None, **headers: str
) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPSConnection("127.0.0.1", proxy.port, context=proxy.tls, timeout=60)
    payload = body if isinstance(body, bytes) or body is None else json.dumps(body)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET" if payload is None else "POST", path, payload, sent)
    return connection, connection.getresponse()


def _completion(**fields: Any) -> dict[str, Any]:
    return {"model": "counter-small", "prompt": "5", "max_tokens": 20, "temperature": 0, **fields}


def test_nginx_takes_the_sample(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("check")
    nginx.configure(folder, 8000)
    result = subprocess.run(nginx.command(folder, "-t"), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "warn" not in result.stderr


def test_what_a_stream_says_goes_on_at_once(served: tuple[Service, Nginx]) -> None:
    """While the model stands still, its stream has nothing but a comment a second: too little
    for any buffer to be full."""
    service, proxy = served
    with paused(service, "counter-small"):
        connection, response = _ask(proxy, "/v1/completions", _completion(stream=True))
        comments = [response.readline(), response.readline(), response.readline()]
        assert all(line.startswith(b":") or line == b"\n" for line in comments)
    text = ""
    for line in response:
        if line.startswith(b"data: {"):
            text += json.loads(line[6:])["choices"][0]["text"]
    assert text == expected_text(5, 20)
    connection.close()


def test_a_websocket_goes_through(served: tuple[Service, Nginx]) -> None:
    _, proxy = served
    url = f"wss://127.0.0.1:{proxy.port}/v1/ws"
    origin = {"Origin": "https://127.0.0.1"}  # this client names no port
    socket = Client.connect(url, ssl_context=proxy.tls, headers=origin)
    frame = {"type": "request", "id": "a", "endpoint": "completions", "body": _completion()}
    socket.send(json.dumps(frame))
    text, kind = "", ""
    while kind != "done":
        message = json.loads(socket.receive(timeout=30) or "{}")
        kind = message["type"]
        assert kind in ("accepted", "chunk", "done"), message
        if kind == "chunk":
            text += message["data"]["choices"][0]["text"]
    assert text == expected_text(5, 20)
    # Its thread must not read on when the next connection has the same descriptor.
    socket.sock.shutdown(SHUT_RDWR)
    socket.thread.join(30)
    socket.sock.close()


def test_the_name_that_nginx_serves_is_the_service_s_own(served: tuple[Service, Nginx]) -> None:
    _, proxy = served
    for host, status in (("llm.example.com", 200), ("elsewhere.example.com", 403)):
        connection, response = _ask(proxy, "/v1/models", Host=host)
        assert (response.status, b"nginx" in response.read()) == (status, False)
        connection.close()


def test_a_request_keeps_its_id_through_nginx(served: tuple[Service, Nginx]) -> None:
    _, proxy = served
    connection, response = _ask(
        proxy, "/v1/completions", _completion(), x_request_id="from-the-client"
    )
    assert response.status == 200
    assert response.headers["x-request-id"] == "from-the-client"
    response.read()
    connection.close()
    wait_for(lambda: "from-the-client" in proxy.log(), "the line in its log")


@pytest.mark.parametrize(
    "path",
    ["/metrics", "/admin/models", "/admin", "//admin/models", "/%61dmin/models", "/v1/../metrics"],
)
def test_what_is_for_operators_is_not_public(served: tuple[Service, Nginx], path: str) -> None:
    _, proxy = served
    connection, response = _ask(proxy, path)
    assert response.status == 404
    assert b"nginx" in response.read()
    connection.close()


def test_bodies_may_be_as_large_as_the_service_takes_them(served: tuple[Service, Nginx]) -> None:
    _, proxy = served
    for num_bytes, is_taken in ((_MANY_BYTES - 1, True), (_MANY_BYTES + 1, False)):
        connection, response = _ask(proxy, "/v1/completions", b" " * num_bytes)
        answer = response.read()
        assert response.status == (400 if is_taken else 413), answer
        assert (b"nginx" not in answer) == is_taken
        connection.close()


def test_plain_http_is_sent_to_tls(served: tuple[Service, Nginx]) -> None:
    _, proxy = served
    connection = http.client.HTTPConnection("127.0.0.1", proxy.http_port, timeout=30)
    connection.request("GET", "/v1/models", headers={"Host": "llm.example.com"})
    response = connection.getresponse()
    assert response.status == 301
    assert response.headers["Location"] == "https://llm.example.com/v1/models"
    connection.close()


def test_its_limits_are_those_of_the_service() -> None:
    directives = {
        words[0]: words[1].rstrip(";")
        for line in SAMPLE.read_text().splitlines()
        if len(words := line.split()) > 1
    }
    settings = Settings()
    assert int(directives["client_max_body_size"]) == settings.max_body_bytes
    assert f"proxy_read_timeout    {settings.request_timeout_s + 60:g}s;" in SAMPLE.read_text()
    assert directives["send_timeout"] == f"{settings.write_timeout_s:g}s"
