"""The client and its pool: what died is opened again, what failed is given back."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import redis

from shared.redis.client import Client
from shared.redis.connection import connect, connect_warm
from shared.settings.fields import Settings
from tests.conftest import running_redis

_NUM = 4


def _client(socket: str | Path, num_connections: int = 2) -> Client:
    settings = Settings(redis_url=f"unix://{socket}", redis_timeout_s=60.0)
    client = connect(settings, max_connections=num_connections)
    assert isinstance(client, Client)
    return client


def _warm(socket: str | Path, timeout_s: float = 60.0) -> redis.Redis:
    settings = Settings(redis_url=f"unix://{socket}", redis_timeout_s=timeout_s)
    return connect_warm(settings, _NUM)


@pytest.fixture
def warm(server: redis.Redis, redis_socket: str) -> Iterator[redis.Redis]:
    with closing(_warm(redis_socket)) as client:
        yield client


def _kill_connections(server: redis.Redis) -> None:
    for other in server.client_list():
        if other["cmd"] != "client|list":
            server.client_kill_filter(_id=other["id"])


def test_replies_are_those_of_redis_py(redis_socket: str) -> None:
    client = _client(redis_socket)
    assert client.set("k", "v") is True
    assert client.hset("h", mapping={"a": 1}) == 1
    assert client.hgetall("h") == {b"a": b"1"}
    assert client.get("none") is None
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        client.lrange("k", 0, -1)
    assert client.register_script("return ARGV[1]")(args=["x"]) == b"x"


def test_a_command_on_a_connection_that_died_is_repeated(
    server: redis.Redis, redis_socket: str
) -> None:
    client = _client(redis_socket)
    client.set("n", 1)
    _kill_connections(server)
    assert client.incr("n") == 2
    _kill_connections(server)
    pipe = client.pipeline()
    pipe.incr("n")
    assert pipe.execute() == [3]
    _kill_connections(server)
    with client.pubsub() as listener:
        listener.subscribe("c")
        assert listener.get_message(timeout=60) is not None


def test_connections_are_used_again(server: redis.Redis, redis_socket: str) -> None:
    client = _client(redis_socket)
    client.ping()
    before = server.info("stats")["total_connections_received"]
    for _ in range(20):
        client.ping()
    assert server.info("stats")["total_connections_received"] == before


def test_a_server_that_is_away_costs_no_place_in_the_pool(tmp_path: Path) -> None:
    client = _client(tmp_path / "none.sock", num_connections=1)
    for _ in range(3):
        with pytest.raises(redis.ConnectionError, match="No such file"):
            client.ping()


def test_an_empty_pool_is_waited_for_as_long_as_it_says(redis_socket: str) -> None:
    client = _client(redis_socket, num_connections=1)
    client.connection_pool.timeout = 0.01
    connection = client.connection_pool.get_connection()
    with pytest.raises(redis.ConnectionError, match="No connection available"):
        client.ping()
    client.connection_pool.release(connection)
    assert client.ping()


def test_a_process_that_has_forked_opens_its_own_connections(redis_socket: str) -> None:
    client = _client(redis_socket, num_connections=1)
    number = client.client_id()
    child = os.fork()
    if child == 0:
        os._exit(client.client_id() == number)
    assert os.waitpid(child, 0)[1] == 0
    assert client.client_id() == number


# -- opened at the start ----------------------------------------------------------------------


def _num_opened(server: redis.Redis) -> int:
    return int(server.info("stats")["total_connections_received"])


def test_a_burst_of_calls_opens_no_connection(server: redis.Redis, warm: redis.Redis) -> None:
    together = threading.Barrier(64)

    def call(number: int) -> int:
        together.wait(60)
        for _ in range(8):
            assert warm.echo(f"{number}") == f"{number}".encode()
        return number

    opened = _num_opened(server)
    with ThreadPoolExecutor(64) as threads:
        assert list(threads.map(call, range(64))) == list(range(64))
    assert _num_opened(server) == opened


def test_the_connections_are_open_before_the_first_call(
    server: redis.Redis, redis_socket: str
) -> None:
    opened = _num_opened(server)
    with closing(_warm(redis_socket)):
        assert _num_opened(server) == opened + _NUM


def test_lost_connections_are_opened_again_by_the_calls_that_use_them(
    server: redis.Redis, warm: redis.Redis
) -> None:
    server.client_kill_filter(_type="normal", skipme=True)
    for number in range(3 * _NUM):
        assert warm.incr("n") == number + 1


def test_a_reply_that_comes_too_late_is_not_that_of_another_call(
    server: redis.Redis, redis_socket: str
) -> None:
    with closing(_warm(redis_socket, timeout_s=0.5)) as client:
        server.client_pause(timeout=600_000, all=False)  # writes wait
        with pytest.raises(redis.TimeoutError):
            client.incr("n")
        server.client_unpause()
        for number in range(3 * _NUM):
            assert client.echo(f"{number}") == f"{number}".encode()


def test_a_server_that_is_away_is_reached_when_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    server = redis.Redis(unix_socket_path=str(path))
    options = ("--port", "0", "--unixsocket", str(path))
    with running_redis(server, tmp_path, *options):
        client = _warm(path)
        assert client.ping()
    for _ in range(2 * _NUM):
        with pytest.raises(redis.ConnectionError):
            client.ping()
    with running_redis(server, tmp_path, *options), closing(client):
        for _ in range(2 * _NUM):
            assert client.ping()
