"""`llmis check`: whether a process of this machine works, for health checks of containers."""

import http.client
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import click

from cli import flower
from cli.address import environment, url_of
from cli.errors import CliError
from shared import settings as settings_module
from shared.errors import SettingsError
from shared.settings import Settings

_TIMEOUT_S = 5.0
_MARKS = {"web": "python:app.gunicorn_conf", "agent": "worker.agent", "flower": "flower"}
"""A word of each process's command line."""


@click.command(short_help="Whether a process of this machine works, for health checks.")
@click.argument("process", type=click.Choice(list(_MARKS)), required=False)
def check(process: str | None) -> None:
    """Whether a process of this machine works; exit status 1 if it does not.

    Without a name: all of them that run here, of which there has to be one.

    The web tier and Flower have to answer, the agent's record in Redis has to be fresh. No key
    is needed.
    """
    try:
        settings = settings_module.load(environment())
    except SettingsError as exc:
        raise CliError(str(exc)) from exc
    found = [process] if process else _running()
    if not found:
        raise CliError("no web tier, agent or Flower runs here")
    for one in found:
        _check(one, settings)


def _running() -> list[str]:
    """By their command lines, which `cli.processes` makes."""
    commands = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            commands.append(file.read_bytes().decode(errors="replace").split("\0"))
    return [name for name, mark in _MARKS.items() if any(mark in words for words in commands)]


def _check(process: str, settings: Settings) -> None:
    """Raises CliError."""
    if process == "agent":
        _check_agent(settings)
    elif process == "web":
        _check_http(f"{url_of(settings)}/healthz")
    else:
        _check_http(f"{flower.url_of(settings)}healthcheck")


def _check_http(url: str) -> None:
    """Raises CliError when nobody answers, or with an error."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", parts.path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as exc:
        raise CliError(f"{url} does not answer: {exc}") from exc
    finally:
        connection.close()
    if status != http.HTTPStatus.OK:
        raise CliError(f"{url} answers with status {status}")


def _check_agent(settings: Settings) -> None:
    import redis

    from shared import registry
    from shared.connections import connect

    try:
        nodes = registry.read_nodes(connect(settings, max_connections=1))
    except (redis.RedisError, ValueError) as exc:
        raise CliError(f"Redis does not answer: {exc}") from exc
    if settings.node not in (node.id for node in nodes):
        raise CliError(f"no agent of {settings.node} is alive")
