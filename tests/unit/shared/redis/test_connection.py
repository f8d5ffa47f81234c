"""Which Redis servers are accepted, and clients whose writes pass on a full one."""

import pytest
import redis

from shared.errors import SettingsError
from shared.redis.connection import check_server, connect
from shared.redis.oom_writes import AtOomClient
from shared.settings.fields import Settings


class _Server(redis.Redis):
    def __init__(self, version: str) -> None:
        self._version = version

    def info(self, section: str | None = None, *_: str, **__: str) -> dict[str, str]:
        return {"redis_version": self._version}


@pytest.mark.parametrize("version", ["7.0.0", "7.2.4", "8.2.1", "10.0.0", "unstable"])
def test_servers_that_are_new_enough(version: str) -> None:
    check_server(_Server(version))


@pytest.mark.parametrize("version", ["6.2.14", "5.0"])
def test_an_old_server_is_refused_with_what_to_do(version: str) -> None:
    with pytest.raises(SettingsError, match=rf"Redis {version}.*7\.0 or later.*REDIS_URL"):
        check_server(_Server(version))


def test_the_embedded_server_is_new_enough(redis_socket: str) -> None:
    check_server(redis.Redis(unix_socket_path=redis_socket))


def test_only_a_client_at_oom_writes_on_a_full_redis(server: redis.Redis) -> None:
    client = AtOomClient(connection_pool=server.connection_pool)
    server.config_set("maxmemory", 1)
    with pytest.raises(redis.OutOfMemoryError):
        server.set("k", 1)
    assert client.set("k", 1, ex=9)
    assert not client.set("k", 2, nx=True)
    assert (client.hset("h", "f", "v"), client.sadd("s", "m"), client.rpush("l", 1)) == (1, 1, 1)
    for transaction in (True, False):
        pipe = client.pipeline(transaction=transaction)
        pipe.set("p", 1, xx=True)
        pipe.sadd("s", "n")
        pipe.expire("s", 9)
        pipe.get("k")
        assert pipe.execute()[-2:] == [True, b"1"]
    assert (server.get("k"), server.hget("h", "f"), server.scard("s")) == (b"1", b"v", 2)


def test_a_client_at_oom_is_made_on_demand() -> None:
    settings = Settings(redis_url="redis://127.0.0.1:1/0")
    assert isinstance(connect(settings, at_oom=True), AtOomClient)
    assert not isinstance(connect(settings), AtOomClient)
