"""A script on a connection of its own: loaded on demand, opened again, errors as redis-py's."""

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
