"""A service that asks for keys: who gets in, who does not, and what each may do."""

import base64
import contextlib
import http.client
import json
import os
import socket as socketlib
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import openai
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from simple_websocket import Client, ConnectionClosed

from shared import api_keys
from shared.api_keys import ApiKey, Scope
from tests.conftest import ROOT, Service, running_service, wait_for
from tests.support.paused_replica import paused

_ISSUER = ec.generate_private_key(ec.SECP256R1())
_MAX_CONNECTIONS = 40
_SETTINGS = f"""
auth = true
web_workers = 2
web_connections = {_MAX_CONNECTIONS}
jwt_jwks = "jwks.json"
jwt_issuer = "https://issuer.test"
jwt_audience = "llmis"
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("guarded")
    public = jwt.algorithms.ECAlgorithm.to_jwk(_ISSUER.public_key(), as_dict=True)
    (data_dir / "jwks.json").write_text(json.dumps({"keys": [{**public, "kid": "1"}]}))
    with running_service(data_dir, extra=_SETTINGS, flower=True) as running:
        yield running
    assert not (data_dir / "admin.key").exists()


def _token(**claims: Any) -> str:
    given = {"iss": "https://issuer.test", "aud": "llmis", "exp": int(time.time()) + 60, "sub": "a"}
    return jwt.encode({**given, **claims}, _ISSUER, "ES256", headers={"kid": "1"})


def _make(service: Service, scope: Scope = Scope.USER, **fields: Any) -> tuple[str, ApiKey]:
    return api_keys.create(service.redis, "test", scope, **fields)


@pytest.fixture(scope="module")
def user(guarded: Service) -> str:
    return _make(guarded)[0]


@pytest.fixture(scope="module")
def admin(guarded: Service) -> str:
    return _make(guarded, Scope.ADMIN)[0]


def _client(service: Service, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0)


def _complete(service: Service, key: str) -> str:
    answer = _client(service, key).completions.create(model="counter", prompt="5", max_tokens=3)
    return answer.choices[0].text


def _ask(
    service: Service, path: str, key: str = "", method: str = "GET"
) -> tuple[int, dict[str, str], Any]:
    """Status, headers (names in lower case) and body."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    connection.request(method, path, "{}" if method == "POST" else None, headers)
    response = connection.getresponse()
    payload = response.read()
    connection.close()
    found = {name.lower(): value for name, value in response.getheaders()}
    is_json = "json" in found.get("content-type", "")
    return response.status, found, json.loads(payload) if is_json else payload.decode()


def test_the_start_says_where_the_password_is(guarded: Service) -> None:
    said = []
    assert guarded.process.stdout is not None
    while not said or "logs:" not in said[-1]:
        said.append(guarded.process.stdout.readline())
    assert f"password in {guarded.data_dir / 'flower.password'}" in "".join(said)


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/readyz", "/version", "/docs", "/openapi.json", "/static/chat.js"]
)
def test_pages_and_probes_are_open(guarded: Service, path: str) -> None:
    assert _ask(guarded, path)[0] == 200


@pytest.mark.parametrize(
    "path", ["/v1/models", "/metrics", "/admin/models", "/v1/requests/req-1", "/nothing"]
)
def test_the_rest_needs_a_key(guarded: Service, path: str) -> None:
    status, headers, body = _ask(guarded, path)
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert (body["error"]["type"], body["error"]["code"]) == (
        "invalid_request_error",
        "invalid_api_key",
    )


def test_the_openai_client_works_with_a_key_that_holds_alone(guarded: Service, user: str) -> None:
    assert _complete(guarded, user).split() == ["6", "7", "8"]
    with pytest.raises(openai.AuthenticationError) as refused:
        _complete(guarded, user + "x")
    assert refused.value.code == "invalid_api_key"


@pytest.mark.parametrize("path", ["/admin/models", "/admin/nodes", "/admin/web", "/metrics"])
def test_some_routes_need_the_scope_admin(
    guarded: Service, user: str, admin: str, path: str
) -> None:
    status, _, body = _ask(guarded, path, user)
    assert (status, body["error"]["code"]) == (403, "insufficient_scope")
    assert _ask(guarded, path, admin)[0] == 200


def test_a_key_for_metrics_reads_metrics_alone(guarded: Service) -> None:
    key, _ = _make(guarded, Scope.METRICS)
    assert _ask(guarded, "/metrics", key)[0] == 200
    with pytest.raises(openai.PermissionDeniedError) as refused:
        _complete(guarded, key)
    assert refused.value.code == "insufficient_scope"
    with pytest.raises(Exception, match="403"):
        _Socket(guarded, key)
    socket = _Socket(guarded)
    socket.send(type="auth", key=key)
    assert socket.receive()["error"]["code"] == "insufficient_scope"
    assert socket.closed_with() == 1008


class _Socket:
    """A WebSocket connection as its frames."""

    def __init__(self, service: Service, key: str = "") -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = Client.connect(f"ws://127.0.0.1:{service.port}/v1/ws", headers=headers)

    def send(self, **frame: Any) -> None:
        self.client.send(json.dumps(frame))

    def receive(self) -> dict[str, Any]:
        frame = self.client.receive(timeout=30)
        assert frame is not None, "a frame within 30 s"
        message: dict[str, Any] = json.loads(frame)
        return message

    def complete(self, frame_id: str) -> dict[str, Any]:
        """The frame that ends a request: done or error."""
        body = {"model": "counter", "prompt": "5", "max_tokens": 3}
        self.send(type="request", id=frame_id, endpoint="completions", body=body)
        while True:
            frame = self.receive()
            if frame["type"] in ("done", "error"):
                return frame

    def closed_with(self) -> int:
        with pytest.raises(ConnectionClosed) as closed:
            while self.client.receive(timeout=30) is not None:
                pass
        return int(closed.value.reason)


@pytest.fixture(scope="module", autouse=True)
def silent(guarded: Service) -> _Socket:
    """Opened before all tests: it takes ten seconds until it is closed."""
    return _Socket(guarded)


def test_a_socket_is_let_in_by_its_first_frame(guarded: Service, user: str) -> None:
    socket = _Socket(guarded)
    socket.send(type="auth", key=user)
    assert socket.receive() == {"type": "authenticated"}
    assert socket.complete("a")["type"] == "done"
    socket.client.close()


def test_a_socket_is_let_in_by_its_header(guarded: Service, user: str) -> None:
    socket = _Socket(guarded, user)
    assert socket.complete("a")["type"] == "done"
    socket.client.close()


@pytest.mark.parametrize(
    "frame", [{"type": "auth", "key": "sk-wrong"}, {"type": "auth"}, {"type": "ping"}]
)
def test_a_socket_without_a_key_is_closed(guarded: Service, frame: dict[str, Any]) -> None:
    socket = _Socket(guarded)
    socket.send(**frame)
    answer = socket.receive()
    assert (answer["type"], answer["error"]["code"]) == ("error", "invalid_api_key")
    assert socket.closed_with() == 1008


def test_a_socket_without_a_key_cannot_send_much(guarded: Service) -> None:
    socket = _Socket(guarded)
    socket.client.send("a" * 20_000)
    assert socket.closed_with() == 1009


def test_what_follows_the_key_at_once_may_be_large(guarded: Service) -> None:
    """The key has just been made: it is asked for in Redis while the next frame comes."""
    socket = _Socket(guarded)
    key = _make(guarded)[0]
    guarded.redis.client_pause(500)
    socket.send(type="auth", key=key)
    socket.send(type="ping", id="large", filler="a" * 500_000)
    assert socket.receive() == {"type": "authenticated"}
    assert socket.receive() == {"type": "pong", "id": "large"}
    socket.client.close()


def test_a_handshake_with_a_wrong_key_is_refused(guarded: Service) -> None:
    with pytest.raises(Exception, match="401"):
        _Socket(guarded, "sk-wrong")


def test_a_revoked_key_ends_within_a_second_in_every_process(guarded: Service) -> None:
    key, record = _make(guarded)
    sockets = [_Socket(guarded, key) for _ in range(6)]
    assert {socket.complete("a")["type"] for socket in sockets} == {"done"}
    api_keys.revoke(guarded.redis, record.id)
    wait_for(lambda: _ask(guarded, "/v1/models", key)[0] == 401, "it is refused", 2)
    for socket in sockets:
        wait_for(lambda s=socket: s.complete("b")["type"] == "error", "it is refused", 2)
        assert socket.complete("c")["error"]["code"] == "invalid_api_key"
        socket.client.close()


def test_an_expired_key_is_refused(guarded: Service) -> None:
    key, _ = _make(guarded, expires_at=time.time() + 0.5)
    wait_for(lambda: _ask(guarded, "/v1/models", key)[0] == 401, "it has expired")
    assert "expired" in _ask(guarded, "/v1/models", key)[2]["error"]["message"]


def test_a_keys_own_limits_hold(guarded: Service, user: str) -> None:
    key, _ = _make(guarded, limits={"requests_per_minute": 2})
    for left in ("1", "0"):
        raw = _client(guarded, key).completions.with_raw_response.create(
            model="counter", prompt="5", max_tokens=1
        )
        assert raw.headers["x-ratelimit-limit-requests"] == "2"
        assert raw.headers["x-ratelimit-remaining-requests"] == left
    with pytest.raises(openai.RateLimitError) as refused:
        _complete(guarded, key)
    assert int(refused.value.response.headers["Retry-After"]) > 0
    socket = _Socket(guarded, key)
    assert socket.complete("a")["error"]["code"] == "rate_limit_exceeded"
    socket.client.close()
    assert _complete(guarded, user), "another key has none"


def test_an_admin_cancels_the_request_of_another_and_does_not_read_it(
    guarded: Service, user: str, admin: str
) -> None:
    stranger, _ = _make(guarded)
    with paused(guarded, "counter"):
        stream = _client(guarded, user).completions.create(
            model="counter", prompt="5", max_tokens=1500, stream=True
        )
        request_id = stream.response.headers["x-request-id"]
        path = f"/v1/requests/{request_id}"
        assert _ask(guarded, path, stranger)[0] == 404
        assert _ask(guarded, path, admin)[0] == 404
        assert _ask(guarded, f"{path}/cancel", stranger, "POST")[0] == 404
        assert _ask(guarded, f"{path}/cancel", admin, "POST")[0] == 200
    stream.close()
    wait_for(lambda: _ask(guarded, path, user)[2]["status"] in ("cancelled", "finished"), "its end")


def test_the_socket_takes_a_newer_key_of_the_same_owner_alone(guarded: Service, user: str) -> None:
    other, _ = _make(guarded)
    socket = _Socket(guarded, user)
    body = {"model": "counter", "prompt": "5", "max_tokens": 1500}
    answers = []
    with paused(guarded, "counter"):
        socket.send(type="request", id="long", endpoint="completions", body=body)
        socket.send(type="auth", key=other)
        socket.send(type="auth", key=user)
        while len(answers) < 2:
            frame = socket.receive()
            assert frame["type"] != "done", "the request is open meanwhile"
            if frame["type"] == "authenticated" or frame.get("id") is None:
                answers.append(frame)
    assert answers[0]["error"]["param"] == "key"
    assert answers[1] == {"type": "authenticated"}
    socket.client.close()


def _flower(service: Service, password: str, path: str = "/workers") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", service.flower_port, timeout=30)
    headers = {}
    if password:
        token = base64.b64encode(f"llmis:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {token}"
    connection.request("GET", path, headers=headers)
    return connection.getresponse().status


def test_flower_asks_for_its_password(guarded: Service) -> None:
    file = guarded.data_dir / "flower.password"
    password = wait_for(lambda: file.exists() and file.read_text().strip(), "it is made")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    wait_for(lambda: _listens(guarded.flower_port), "Flower listens", 60)
    for path in ("/workers", "/api/workers", "/tasks"):
        assert _flower(guarded, "", path) == 401
        assert _flower(guarded, "wrong", path) == 401
    assert _flower(guarded, password) == 200
    for pid in guarded.pids("flower"):
        assert password not in Path(f"/proc/{pid}/cmdline").read_text()


def _listens(port: int) -> bool:
    with socketlib.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _llmis(service: Service, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command where the service's settings hold."""
    found = {k: v for k, v in os.environ.items() if not k.startswith("LLMIS_")}
    found |= {
        "LLMIS_CONFIG": str(service.data_dir / "llmis.toml"),
        "LLMIS_DATA_DIR": str(service.data_dir),
        **environ,
    }
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        env=found,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_works_for_who_may_read_the_data_folder(
    guarded: Service, user: str, tmp_path: Path
) -> None:
    assert stat.S_IMODE((guarded.data_dir / "admin.key").stat().st_mode) == 0o600
    assert "counter" in _llmis(guarded, "ps").stdout
    assert _llmis(guarded, "complete", "5", "--model", "counter").returncode == 0
    refused = _llmis(guarded, "ps", LLMIS_API_KEY=user)
    assert (refused.returncode, "scope admin" in refused.stderr) == (1, True)
    away = _llmis(guarded, "ps", LLMIS_DATA_DIR=str(tmp_path))
    assert (away.returncode, "API key is needed" in away.stderr) == (1, True)


def test_the_key_of_the_service_is_not_sent_elsewhere(guarded: Service) -> None:
    """Who names an address may name a stranger's."""
    named = _llmis(guarded, "ps", "--url", guarded.url)
    assert (named.returncode, "API key is needed" in named.stderr) == (1, True)


def test_keys_are_made_and_revoked_by_the_command(guarded: Service) -> None:
    made = _llmis(guarded, "keys", "create", "by-command")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert _complete(guarded, key)
    assert _llmis(guarded, "keys", "revoke", "by-command").returncode == 0
    wait_for(lambda: _ask(guarded, "/v1/models", key)[0] == 401, "it is refused", 2)


def test_no_key_is_found_where_others_look(guarded: Service, user: str, admin: str) -> None:
    """Neither in logs nor in Redis, from where replicas and Flower have all that they know."""
    _complete(guarded, user)
    _Socket(guarded, user).client.close()
    assert _ask(guarded, f"/v1/models?api_key={user}")[0] == 401, "a URL brings none"
    for line in (f"Authorization Bearer {user}", f"X: y\r\n {user}", f"Auth orization: {user}"):
        with socketlib.create_connection(("127.0.0.1", guarded.port), timeout=30) as raw:
            raw.sendall(f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{line}\r\n\r\n".encode())
            assert b"400" in raw.recv(4096)
    for log in (guarded.data_dir / "logs").iterdir():
        assert user not in log.read_text(errors="replace"), log
    for name in guarded.redis.scan_iter():
        assert user.encode() not in name + (guarded.redis.dump(name) or b""), name
    assert user not in _ask(guarded, "/metrics", admin)[2]


def test_tokens_of_the_issuer_are_let_in(guarded: Service) -> None:
    token = _token(sub="alice")
    assert _complete(guarded, token)
    assert _ask(guarded, "/metrics", token)[0] == 403
    assert _ask(guarded, "/metrics", _token(sub="bob", scope="llmis:admin"))[0] == 200
    status, _, body = _ask(guarded, "/v1/models", _token(exp=int(time.time()) - 60))
    assert (status, body["error"]["message"]) == (401, "The token is not valid: it has expired.")


def test_a_socket_that_says_nothing_is_closed(silent: _Socket) -> None:
    assert silent.closed_with() == 1008


def test_sockets_without_a_key_make_room_for_others(guarded: Service) -> None:
    """Half of a frame each, and more of them than connections are served at the same time."""
    half = b"\x81\xfe\x20\x00" + b"\0" * 4 + b"a" * 1000
    sockets = [_Socket(guarded).client for _ in range(3 * _MAX_CONNECTIONS)]
    for client in sockets:
        with contextlib.suppress(OSError):
            client.sock.sendall(half)

    def num_cut_off() -> int:
        """Without a word: those whose time is over are told so."""
        return sum(client.close_reason == 1005 and not client.connected for client in sockets)

    wait_for(lambda: num_cut_off() >= _MAX_CONNECTIONS // 2, "they make room")
    for _ in range(5):
        assert _ask(guarded, "/healthz")[0] == 200
    for client in sockets:
        client.sock.close()


def test_who_guesses_has_to_wait_and_keys_that_hold_work_on(guarded: Service, user: str) -> None:
    """The last one: from then on this address hears of no wrong key for a minute."""
    wait_for(lambda: _ask(guarded, "/v1/models", "sk-guess")[0] == 429, "it is refused", 60)
    status, headers, body = _ask(guarded, "/v1/models", "sk-guess")
    assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 0 < int(headers["retry-after"]) <= 60
    assert _complete(guarded, user)


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "cli", "up"],
        ["-m", "gunicorn", "-c", "python:app.gunicorn_conf", "app.wsgi:app"],
        ["-m", "cli", "flower"],
    ],
    ids=["up", "gunicorn", "flower"],
)
@pytest.mark.parametrize("name", ["HOST", "FLOWER_HOST"])
def test_nothing_starts_on_an_address_of_others_without_keys(
    tmp_path: Path, command: list[str], name: str
) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("LLMIS_")}
    environ |= {f"LLMIS_{name}": "0.0.0.0", "LLMIS_DATA_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode != 0
    assert f"{name.lower()} = '0.0.0.0'" in result.stderr
    assert "open_access = true" in result.stderr
