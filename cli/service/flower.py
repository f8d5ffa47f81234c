"""Flower's address, and its password when the setting `auth` is on."""

import secrets
from pathlib import Path

from cli.address import url_at
from cli.errors import CliError
from cli.service.private_file import write_private
from shared.settings.fields import Settings

_USER = "llmis"


def credentials(settings: Settings) -> dict[str, str]:
    """Environment variables with Flower's password; empty if `auth` is off. Every user of the
    machine could read it on a command line. Raises CliError."""
    return {"FLOWER_BASIC_AUTH": f"{_USER}:{_password(settings)}"} if settings.auth else {}


def url_of(settings: Settings) -> str:
    return f"{url_at(settings.flower_host, settings.flower_port)}/"


def password_path(settings: Settings) -> Path:
    """The file with the generated password, which is used if the settings have none."""
    return settings.data_path / "flower.password"


def _password(settings: Settings) -> str:
    """Raises CliError."""
    if settings.flower_password:
        return settings.flower_password
    path = password_path(settings)
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_private(path, secrets.token_urlsafe(24) + "\n")
        return path.read_text("utf-8").strip()
    except OSError as exc:
        raise CliError(f"{path}: Flower's password cannot be stored there: {exc}") from exc
