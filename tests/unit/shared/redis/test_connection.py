"""Which Redis servers are taken."""

import pytest
import redis

from shared.connections import check_server
from shared.errors import SettingsError


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
