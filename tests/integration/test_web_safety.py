"""Attacks from web pages and over plain HTTP: each is tried, and none works."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from simple_websocket import Client

from shared import names
from tests.conftest import ROOT, Service, running_service, wait_for
from tests.support.raw_http import connect, exchange, read_all, request, websocket_close

_PARTNER = "https://chat.example.com"
_STRANGER = "https://evil.example"
_MAX_BODY_BYTES = 50_000
_MAX_CONNECTIONS = 40
_NAME = "my_service"
_EXTRA = f"""
allowed_hosts = ["{_NAME}"]
cors_origins = ["{_PARTNER}"]
max_body_bytes = {_MAX_BODY_BYTES}
read_timeout_s = 1
web_connections = {_MAX_CONNECTIONS}
"""
_COMPLETION = {"model": "counter", "prompt": "5", "max_tokens": 3, "temperature": 0}
_JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("safety"), extra=_EXTRA) as running:
        yield running
        assert "Traceback" not in running.log("web"), "nothing unforeseen has happened"


class _Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def code(self) -> str | None:
        code: str | None = json.loads(self.body)["error"]["code"]
        return code


def _ask(service: Service, method: str, path: str, body: Any = None, **headers: str) -> _Answer:
    """`x_request_id="a"` is the header x-request-id. A body that is no bytes goes as JSON."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None and not isinstance(body, bytes):
        body, sent = json.dumps(body).encode(), _JSON | sent
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    try:
        connection.request(method, path, body, sent)
        return _Answer(connection.getresponse())
    finally:
        connection.close()


def _has_begun(service: Service, request_id: str) -> bool:
    return bool(service.redis.exists(names.job_key(request_id)))


# -- headers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "cache"),
    [
        ("GET", "/", 200, "no-cache"),
        ("GET", "/docs", 200, "no-cache"),
        ("GET", "/static/chat.js", 200, "no-cache"),
        ("GET", "/v1/models", 200, "no-store"),
        ("GET", "/metrics", 200, "no-store"),
        ("GET", "/nothing", 404, "no-store"),
        ("DELETE", "/v1/models", 405, "no-store"),
        ("POST", "/v1/completions", 400, "no-store"),
    ],
)
def test_every_answer_has_the_security_headers(
    service: Service, method: str, path: str, status: int, cache: str
) -> None:
    answer = _ask(service, method, path)
    assert answer.status == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"] == cache
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    is_page = path in ("/", "/docs")
    assert ("script-src 'self'" in policy) == is_page
    assert ("cross-origin-opener-policy" in answer.headers) == is_page


def test_no_header_tells_the_scheme(service: Service) -> None:
    """gunicorn by itself would believe each of them, and refuse two that differ."""
    answer = _ask(service, "GET", "/healthz", X_Forwarded_Proto="https", X_Forwarded_Ssl="off")
    assert answer.status == 200


# -- web pages of other origins ----------------------------------------------------------------


def _stream(service: Service, origin: str) -> _Answer:
    return _ask(service, "POST", "/v1/completions", {**_COMPLETION, "stream": True}, Origin=origin)


def test_a_named_origin_may_use_the_api(service: Service) -> None:
    preflight = _ask(
        service,
        *("OPTIONS", "/v1/chat/completions"),
        Origin=_PARTNER,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="authorization,content-type,x-stainless-lang",
    )
    assert preflight.status == 204 and preflight.body == b""
    assert preflight.headers["access-control-allow-origin"] == _PARTNER
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in preflight.headers

    too_large = b" " * (_MAX_BODY_BYTES + 1)
    answers = {
        200: _stream(service, _PARTNER),
        400: _ask(service, "POST", "/v1/completions", {}, Origin=_PARTNER),
        404: _ask(service, "GET", "/v1/models/none", Origin=_PARTNER),
        413: _ask(service, "POST", "/v1/completions", too_large, Origin=_PARTNER),
    }
    for status, answer in answers.items():
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == _PARTNER
        assert "Origin" in answer.headers["vary"]
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "retry-after", "x-ratelimit-remaining-requests"} <= set(exposed)
    assert answers[200].body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "origin",
    [
        *(_STRANGER, "null", "", "http://chat.example.com", f"{_PARTNER}.evil.example"),
        *(f"{_PARTNER}:8443", "http://[bad", "http://127.0.0.1:1", f"{_PARTNER}/"),
    ],
)
def test_a_page_of_another_origin_starts_no_work_and_reads_nothing(
    service: Service, origin: str
) -> None:
    request_id = f"page-{abs(hash(origin))}"
    # What a browser sends without asking first: text/plain.
    answer = _ask(
        service,
        *("POST", "/v1/completions", json.dumps(_COMPLETION).encode()),
        Content_Type="text/plain",
        Origin=origin,
        x_request_id=request_id,
    )
    assert answer.status == 403 and answer.code == "origin_not_allowed"
    assert not _has_begun(service, request_id)
    preflight = _ask(
        service,
        "OPTIONS",
        "/admin/models/unload",
        Origin=origin,
        Access_Control_Request_Method="POST",
    )
    listing = _ask(service, "GET", "/v1/models", Origin=origin)
    assert (preflight.status, listing.status) == (403, 403)
    for refusal in (answer, preflight, listing):
        assert "access-control-allow-origin" not in refusal.headers


def test_a_form_of_another_site_starts_no_work_though_its_origin_is_hidden(
    service: Service,
) -> None:
    body = json.dumps(_COMPLETION).encode()
    headers = {"Sec_Fetch_Site": "cross-site", "Content_Type": "text/plain"}
    answer = _ask(service, "POST", "/v1/completions", body, x_request_id="form", **headers)
    assert answer.status == 403 and not _has_begun(service, "form")
    assert _ask(service, "GET", "/", Sec_Fetch_Site="cross-site").status == 200, "a link to it"


def test_clients_that_are_no_pages_and_the_services_own_pages_are_served(service: Service) -> None:
    own = f"http://127.0.0.1:{service.port}"
    assert _stream(service, own).status == 200
    body = json.dumps(_COMPLETION).encode()
    headers = {"Content_Type": "application/x-www-form-urlencoded"}  # curl -d
    assert _ask(service, "POST", "/v1/completions", body, **headers).status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "localhost.evil.example",
                                  "127.0.0.1.evil.example", "[bad"])  # fmt: skip
def test_a_name_that_was_pointed_at_this_machine_is_refused(service: Service, host: str) -> None:
    for path in ("/", "/v1/models", "/v1/ws"):
        name = host.format(port=service.port)
        answer = _ask(service, "GET", path, Host=name, Origin=f"http://{name}")
        assert answer.status == 403 and answer.code == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "llmis.localhost", "[::1]:80",
                                  "10.0.0.7:8000"])  # fmt: skip
def test_local_names_and_addresses_are_answered(service: Service, host: str) -> None:
    assert _ask(service, "GET", "/v1/models", Host=host).status == 200


def test_the_chat_page_works_under_a_name_with_an_underscore(service: Service) -> None:
    page = {"Host": f"{_NAME}:{service.port}", "Origin": f"http://{_NAME}:{service.port}"}
    assert _ask(service, "GET", "/", Host=page["Host"]).status == 200
    assert _ask(service, "GET", "/static/chat.js", **page).status == 200
    assert _ask(service, "POST", "/v1/completions", _COMPLETION, **page).status == 200
    for origin, is_own in {page["Origin"]: True, _STRANGER: False}.items():
        handshake = request("GET /v1/ws", [
            "Upgrade: websocket", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", f"Origin: {origin}",
        ]).replace(b"Host: 127.0.0.1", f"Host: {page['Host']}".encode())  # fmt: skip
        handshake = handshake.replace(b"Connection: close", b"Connection: Upgrade")
        with connect(service) as sock:
            # Our own page closes in the same packet; a foreign one is closed by the service.
            sock.sendall(handshake + (b"\x88\x80\0\0\0\0" if is_own else b""))
            answer = read_all(sock)
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert (b"cross-origin" not in answer) == is_own


def test_probes_may_use_any_name_and_others_may_not(service: Service) -> None:
    for path, status in {"/healthz": 200, "/readyz": 200, "/metrics": 403, "/": 403}.items():
        assert _ask(service, "GET", path, Host="web:8000").status == status


def test_a_websocket_of_a_named_origin_is_served_and_another_is_closed(service: Service) -> None:
    url = f"ws://127.0.0.1:{service.port}/v1/ws"
    partner = Client.connect(url, headers={"Origin": _PARTNER})
    partner.send('{"type": "ping", "id": "p"}')
    assert json.loads(partner.receive(timeout=30) or "") == {"type": "pong", "id": "p"}
    partner.close()
    closed = websocket_close(service, _STRANGER)
    assert closed.code == 1008 and "cross-origin" in (closed.reason or "")


# -- what is no proper HTTP --------------------------------------------------------------------

_SMUGGLED = request("GET /healthz")
_CHUNKS = b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("payload", "statuses"),
    [
        # Two ways to tell where the body ends: a proxy may take the other one.
        (request("POST /v1/completions", ["Content-Length: 5", "Transfer-Encoding: chunked"])
         + _CHUNKS + _SMUGGLED, {400}),
        (request("POST /v1/completions", ["Content-Length: 5", "Content-Length: 6"], b"hello")
         + _SMUGGLED, {400}),
        (request("POST /v1/completions", ["Content-Length: +5"], b"hello") + _SMUGGLED, {400}),
        (request("POST /v1/completions", ["Transfer-Encoding: xchunked"]) + _CHUNKS, {400, 501}),
        (request("POST /v1/completions", ["Transfer-Encoding : chunked"]) + _CHUNKS, {400}),
        (request("POST /v1/completions", ["Transfer-Encoding: chunked"])
         + b"5 \r\nhello\r\n0\r\n\r\n", {400}),
        (request("GET /healthz", ["X-A: 1", " folded: 2"]), {400}),
        (request("GET /healthz", ["X-A: a\0b"]), {400}),
        (request("GET /healthz", ["X-A: a\rb"]), {400}),
        (request("GET /healthz", ["X A: 1"]), {400}),
        (request("GE\0T /healthz"), {400}),
        (request("GET /" + "a" * 10_000), {414}),
        (request("GET /healthz", ["X-A: " + "a" * 10_000]), {431}),
        (request("GET /healthz", [f"X-{i}: 1" for i in range(200)]), {431}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", {400}),
        (b"GET / HTTP/9.9\r\n\r\n", {400}),
        (request("GET http://10.0.0.1/healthz"), {200, 400, 404}),
        (request("CONNECT 10.0.0.1:22"), {400, 404, 405}),
        (request("TRACE /healthz", ["X-Secret: s"]), {400, 405}),
    ],
)  # fmt: skip
def test_what_is_no_proper_http_is_refused_in_one_answer(
    service: Service, payload: bytes, statuses: set[int]
) -> None:
    answer = exchange(service, payload)
    assert answer.count(b"HTTP/1.1 ") == 1, "nothing behind it is taken for a request"
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) in statuses, answer
    if 200 not in statuses:
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
        assert b"nosniff" in head
    assert b"X-Secret" not in answer


def test_a_method_cannot_be_replaced_by_a_header(service: Service) -> None:
    for name in ("X_HTTP_Method_Override", "X_HTTP_Method", "X_Method_Override"):
        answer = _ask(service, "POST", "/v1/models?_method=GET", {}, **{name: "GET"})
        assert answer.status == 405


@pytest.mark.parametrize("value", ["a\tb", "a b", "a%0d%0aX-Evil: 1", "é", "a" * 500, "<script>"])
def test_no_header_of_a_client_comes_back_as_something_else(service: Service, value: str) -> None:
    headers = {"x-request-id": value, "Last-Event-ID": value, "Idempotency-Key": value}
    for name, sent in headers.items():
        lines = [*(f"{n}: {v}" for n, v in _JSON.items()), f"{name}: {sent}"]
        body = json.dumps({**_COMPLETION, "model": f"m\r\nX-Evil: {value}"}).encode()
        lines.append(f"Content-Length: {len(body)}")
        answer = exchange(service, request("POST /v1/completions", lines, body))
        head = answer.partition(b"\r\n\r\n")[0].lower()
        assert int(head.split()[1]) in (400, 404)
        assert b"x-evil" not in head and b"<script" not in head
        assert head.count(b"x-request-id: req-") == 1


def test_a_compressed_body_is_refused(service: Service) -> None:
    answer = _ask(service, "POST", "/v1/completions", b"\x1f\x8b", Content_Encoding="gzip")
    assert answer.status == 415 and answer.code == "unsupported_media_type"


def test_a_chunked_body_has_the_same_limit(service: Service) -> None:
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    head = request("POST /v1/completions", ["Transfer-Encoding: chunked"])
    answer = exchange(service, head, chunk * 20, _CHUNKS)
    assert answer.startswith(b"HTTP/1.1 413 ")


# -- a client that asks before it sends its body --------------------------------------------------

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_ASKED = json.dumps(_COMPLETION).encode()


def _asking(*headers: str, path: str = "/v1/completions", num_bytes: int = len(_ASKED)) -> bytes:
    """The head of a request whose client waits to be told to go on, on a connection to be kept."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Expect: 100-continue", *headers]
    lines += [] if "Transfer-Encoding: chunked" in headers else [f"Content-Length: {num_bytes}"]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (_asking(num_bytes=_MAX_BODY_BYTES + 1), 413),
        (_asking(num_bytes=2**62), 413),
        (_asking(path="/v1/nothing"), 404),
        (_asking("Content-Encoding: gzip"), 415),
        (_asking(f"Origin: {_STRANGER}"), 403),
    ],
)
def test_a_body_that_will_not_be_read_is_not_asked_for(
    service: Service, head: bytes, status: int
) -> None:
    answer = exchange(service, head)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert answer.count(b"HTTP/1.1 ") == 1 and b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_is_read_is_asked_for_first(service: Service, is_chunked: bool) -> None:
    head, body = _asking(), _ASKED
    if is_chunked:
        head = _asking("Transfer-Encoding: chunked")
        body = f"{len(_ASKED):x}\r\n".encode() + _ASKED + b"\r\n0\r\n\r\n"
    with connect(service) as sock:
        for _ in range(2):  # the connection stays open
            sock.sendall(head)
            assert sock.recv(len(_CONTINUE), socket.MSG_WAITALL) == _CONTINUE
            sock.sendall(body)
            answer = http.client.HTTPResponse(sock)
            answer.begin()
            assert (answer.status, answer.headers["Connection"]) == (200, "keep-alive")
            assert json.loads(answer.read())["usage"]["completion_tokens"] == 3


def test_a_chunked_body_that_was_asked_for_has_the_same_limit(service: Service) -> None:
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    head = _asking("Transfer-Encoding: chunked", "Connection: close")
    answer = exchange(service, head, chunk * 20, b"0\r\n\r\n")
    assert answer.removeprefix(_CONTINUE).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_came_with_its_head_is_not_asked_for(service: Service) -> None:
    answer = exchange(service, _asking("Connection: close") + _ASKED)
    assert answer.startswith(b"HTTP/1.1 200 ")


# -- files and other hosts ---------------------------------------------------------------------

_TRAVERSALS = [
    "/static/../llmis.toml", "/static/..%2f..%2fllmis.toml", "/static/%2e%2e/llmis.toml",
    "/static/....//llmis.toml", "/static//etc/passwd", "/static/..\\llmis.toml",
    "/static/%00", "/static/chat.js%00.txt", "/docs/..%2f..%2fetc%2fpasswd", "//etc/passwd",
    "/static/%c0%ae%c0%ae/llmis.toml", "/templates/chat.html", "/v1/models/..%2f..%2fadmin",
]  # fmt: skip


@pytest.mark.parametrize("path", _TRAVERSALS)
def test_no_path_leads_to_a_file_outside(service: Service, path: str) -> None:
    answer = _ask(service, "GET", path)
    assert answer.status in (400, 404)
    assert "location" not in answer.headers
    assert b"[[models]]" not in answer.body and b"root:" not in answer.body


def test_no_model_path_leads_outside_the_model_folder(service: Service, tmp_path: Path) -> None:
    secret = tmp_path / "secret.gguf"
    secret.write_text("top secret")
    models = ROOT / "var" / "test" / "models"
    link = models / f"link-{tmp_path.name}-{time.time_ns()}.gguf"
    link.symlink_to(secret)
    try:
        paths = ["../../etc/passwd", "/etc/passwd", str(secret), "a\0b", link.name, ".", "a" * 5000,
                 "counter.gguf/../../../../etc/passwd", "http://127.0.0.1/x.gguf"]  # fmt: skip
        for path in paths:
            body = {"name": "outside", "path": path, "wait": True}
            answer = _ask(service, "POST", "/admin/models/load", body)
            assert 400 <= answer.status < 500, path
            assert b"root:" not in answer.body and b"top secret" not in answer.body
    finally:
        link.unlink()


def test_nothing_in_a_request_makes_the_service_ask_another_host(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.settimeout(0)
        url = f"http://127.0.0.1:{bait.getsockname()[1]}/x"
        image = {"type": "image_url", "image_url": {"url": url}}
        schema = {"type": "object", "properties": {"a": {"$ref": url}}}
        chat = {"model": "counter", "max_tokens": 2, "messages": [{"role": "user", "content": "5"}]}
        for body in (
            {**chat, "messages": [{"role": "user", "content": [image]}]},
            {**chat, "response_format": {"type": "json_schema",
                                         "json_schema": {"name": "s", "schema": schema}}},
            {**chat, "chat_template": "{% include 'x' %}"},
        ):  # fmt: skip
            assert _ask(service, "POST", "/v1/chat/completions", body).status == 400
        _ask(service, "GET", "/docs", Forwarded=f"host={url}", X_Forwarded_Host=url)
        with pytest.raises(BlockingIOError):
            bait.accept()


def test_text_in_a_message_is_no_template(service: Service) -> None:
    body = {"model": "counter", "messages": [{"role": "user", "content": "{{ 7 * 7 }}"}],
            "chat_template_kwargs": {"x": "{{ ''.__class__.__mro__ }}"}}  # fmt: skip
    tokenized = _ask(service, "POST", "/tokenize", {**body, "return_token_strs": True})
    assert tokenized.status == 200
    assert "49" not in "".join(json.loads(tokenized.body)["token_strs"])


# -- slow clients ------------------------------------------------------------------------------

_SLOW_HEAD = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: "
_LONG_BODY = request("POST /v1/completions", ["Content-Length: 40000"]) + b"{"


@pytest.mark.parametrize("start", [_SLOW_HEAD, _LONG_BODY, b""], ids=["head", "body", "idle"])
def test_slow_clients_do_not_keep_others_out(service: Service, start: bytes) -> None:
    """More of them than connections are served at the same time."""
    slow = [connect(service) for _ in range(2 * _MAX_CONNECTIONS)]
    try:
        for sock in slow:
            sock.sendall(start)
        for _ in range(5):
            assert _ask(service, "GET", "/healthz").status == 200
    finally:
        for sock in slow:
            sock.close()


def test_a_head_that_never_ends_is_cut_off(service: Service) -> None:
    assert exchange(service, _SLOW_HEAD) == b""


def test_a_body_that_never_ends_is_told_so_and_cut_off(service: Service) -> None:
    answer = exchange(service, _LONG_BODY)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"request_timeout"' in answer


def test_a_slow_line_may_take_longer_as_long_as_something_comes(service: Service) -> None:
    """1,000 bytes a second, for more than twice `read_timeout_s`; then the connection goes on."""
    body = json.dumps(_COMPLETION).encode().ljust(2400)
    head = request("POST /v1/completions", [f"Content-Length: {len(body)}"])
    with connect(service) as sock:
        sock.sendall(head.replace(b"Connection: close\r\n", b""))
        for at in range(0, len(body), 400):
            time.sleep(0.4)
            sock.sendall(body[at : at + 400])
        assert b"HTTP/1.1 200 " in sock.recv(65536)
        time.sleep(1.5)  # idle for longer than it: that is another limit
        sock.sendall(request("GET /healthz"))
        assert b'{"status":"ok"}' in read_all(sock)


def test_a_websocket_may_be_silent(service: Service) -> None:
    ws = Client.connect(f"ws://127.0.0.1:{service.port}/v1/ws")
    time.sleep(2.5)
    ws.send('{"type": "ping", "id": "p"}')
    assert json.loads(ws.receive(timeout=30) or "")["type"] == "pong"
    ws.close()
    wait_for(lambda: not ws.connected, "it is closed")
