"""The client and its pool: what died is opened again, what failed is given back."""

import os
from pathlib import Path

import pytest
import redis

from shared.redis.client import Client
from shared.redis.connection import connect
from shared.settings.fields import Settings


def _client(socket: str | Path, num_connections: int = 2) -> Client:
    settings = Settings(redis_url=f"unix://{socket}", redis_timeout_s=60.0)
    client = connect(settings, max_connections=num_connections)
    assert isinstance(client, Client)
    return client


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
