"""A script on a connection of its own: loaded on demand, opened again, errors as redis-py's."""

import socket
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from shared.redis.connection import connect
from shared.redis.script_connection import ScriptConnection
from shared.settings.fields import Settings
from tests.conftest import running_redis

_KEYS, _ARGS = ["lease", "log", "channel"], [1, b"", 0, b"event", 9, "1", b"message"]


def _settings(url: str) -> Settings:
    return Settings(redis_url=url, redis_timeout_s=10.0)


@pytest.fixture
def script(server: redis.Redis, redis_socket: str) -> ScriptConnection:
    return ScriptConnection(connect(_settings(f"unix://{redis_socket}")), "append")


def test_a_script_that_the_server_does_not_know_is_loaded(
    server: redis.Redis, script: ScriptConnection
) -> None:
    for _ in range(2):
        server.script_flush()
        assert script.call(_KEYS, _ARGS) == [[0], []]
    assert server.lrange("log", 0, -1) == [b"event"], "a repeated event is there once"


def test_a_connection_that_died_while_idle_is_opened_again(
    server: redis.Redis, script: ScriptConnection
) -> None:
    script.call(_KEYS, _ARGS)
    others: Any = server.client_list()
    for other in others:
        if other["cmd"] != "client|list":
            server.client_kill_filter(_id=other["id"])
    assert script.call(_KEYS, _ARGS) == [[0], []]


def test_an_error_of_the_script_leaves_the_connection_usable(
    server: redis.Redis, script: ScriptConnection
) -> None:
    server.set("log", "not a list")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        script.call(_KEYS, _ARGS)
    server.delete("log")
    assert script.call(_KEYS, _ARGS) == [[0], []]


def test_it_runs_on_a_full_redis(server: redis.Redis, script: ScriptConnection) -> None:
    server.config_set("maxmemory", 1)
    assert script.call(_KEYS, _ARGS) == [[0], []]


def test_a_server_that_is_away_gives_redis_errors(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    script = ScriptConnection(connect(_settings(f"unix://{path}")), "append")
    with pytest.raises(redis.ConnectionError):
        script.call(_KEYS, _ARGS)
    with running_redis(redis.Redis(unix_socket_path=str(path)), tmp_path, *_options(path)):
        assert script.call(_KEYS, _ARGS) == [[0], []]
    with pytest.raises(redis.ConnectionError):
        script.call(_KEYS, _ARGS)


def test_a_server_that_was_started_again_gets_the_script_in_the_same_call(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    script = ScriptConnection(connect(_settings(f"unix://{path}")), "append")
    for _ in range(2):
        with running_redis(redis.Redis(unix_socket_path=str(path)), tmp_path, *_options(path)):
            assert script.call(_KEYS, _ARGS) == [[0], []]


def test_a_reply_that_comes_too_late_is_not_that_of_the_next_call(
    server: redis.Redis, redis_socket: str
) -> None:
    settings = Settings(redis_url=f"unix://{redis_socket}", redis_timeout_s=0.5)
    script = ScriptConnection(connect(settings), "append")
    assert script.call(_KEYS, _ARGS) == [[0], []]
    server.client_pause(timeout=600_000, all=False)  # writes wait
    with pytest.raises(redis.TimeoutError):
        script.call(_KEYS, _ARGS)
    server.client_unpause()
    with server.pubsub() as reader:
        reader.subscribe("channel")
        assert reader.get_message(timeout=60)
        assert script.call(_KEYS, _ARGS) == [[1], []], "not the [[0], []] of the call before"


def test_a_half_read_reply_is_not_continued_by_the_next_call(tmp_path: Path) -> None:
    settings = Settings(redis_url=f"unix://{tmp_path}/redis.sock", redis_timeout_s=0.5)
    replies = [b"*2\r\n*1\r\n:7\r\n", b"*2\r\n*1\r\n:0\r\n*0\r\n"]
    with socket.socket(socket.AF_UNIX) as listener, closing(connect(settings)) as client:
        listener.bind(f"{tmp_path}/redis.sock")
        listener.listen()
        thread = threading.Thread(target=_answer, args=(listener, replies), daemon=True)
        thread.start()
        script = ScriptConnection(client, "append")
        with pytest.raises(redis.TimeoutError):
            script.call(_KEYS, _ARGS)
        assert script.call(_KEYS, _ARGS) == [[0], []]
        client.connection_pool.disconnect()
        thread.join(60)


def _answer(listener: socket.socket, replies: list[bytes]) -> None:
    """Answer the script on each new connection with the next of the replies, and nothing more."""
    for reply in replies:
        peer, _ = listener.accept()
        with peer:
            while received := peer.recv(65536):
                if b"EVALSHA" in received:
                    peer.sendall(reply)
                else:
                    peer.sendall(b"+PONG\r\n" if b"PING" in received else b"+OK\r\n")


def test_password_and_database_of_the_url_are_used(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    client = redis.Redis(unix_socket_path=str(path), password="secret", db=3)
    with running_redis(client, tmp_path, *_options(path), "--requirepass", "secret"):
        url = f"unix://:secret@{path}?db=3"
        assert ScriptConnection(connect(_settings(url)), "append").call(_KEYS, _ARGS) == [[0], []]
        assert client.llen("log") == 1
        refused = ScriptConnection(connect(_settings(f"unix://{path}")), "append")
        with pytest.raises(redis.AuthenticationError):
            refused.call(_KEYS, _ARGS)


def _options(path: Path) -> tuple[str, ...]:
    return "--port", "0", "--unixsocket", str(path)
