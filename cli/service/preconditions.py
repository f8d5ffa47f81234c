"""Folders, lock and ports that `llmis up` needs before it starts a process."""

import fcntl
import socket
from typing import IO

from shared.settings.fields import Settings


class StartError(Exception):
    """The service cannot start. The message says what to do about it."""


def lock_folders(settings: Settings) -> IO[str]:
    """Create the folders and lock the data folder while the returned file is open. Raises
    StartError, also if another service holds the lock."""
    try:
        for folder in (settings.data_path / "logs", settings.models_path):
            folder.mkdir(parents=True, exist_ok=True)
        lock = (settings.data_path / "lock").open("w")
    except OSError as exc:
        raise StartError(
            f"data_dir = {settings.data_dir!r} cannot be used: {exc}. "
            "Set LLMIS_DATA_DIR to a folder that can be written."
        ) from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        lock.close()
        raise StartError(
            f"another llmis runs on the data folder {settings.data_path}. "
            "Stop it, or set LLMIS_DATA_DIR to another folder."
        ) from exc
    return lock


def check_ports(settings: Settings) -> None:
    """Raises StartError if the web tier or Flower could not listen."""
    _check_port(settings.host, settings.port, "port", "LLMIS_PORT")
    if settings.flower_port:
        _check_port(settings.flower_host, settings.flower_port, "flower_port", "LLMIS_FLOWER_PORT")


def _check_port(host: str, port: int, setting: str, variable: str) -> None:
    try:
        bind(host, port)
    except (OSError, OverflowError) as exc:
        raise StartError(
            f"cannot listen on {host}:{port} ({exc}). Stop what uses it, or set {setting} "
            f"in llmis.toml or {variable} to another port."
        ) from exc


def bind(host: str, port: int) -> None:
    """Bind a socket and close it. Raises OSError if no server can listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As gunicorn does: connections of an ended service in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
