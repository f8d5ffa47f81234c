"""`llmis check`: health checks of the processes on this machine, for containers."""

from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

import click

from cli.address import settings_here, url_of
from cli.client import ServiceClient
from cli.errors import CliError, Unreachable
from cli.service import flower
from cli.service.embedded_redis import running_redis
from shared.registry import records
from shared.settings.fields import Settings

_TIMEOUT_S = 5.0
_MARKS = {"web": "python:app.gunicorn_conf", "agent": "worker.agent", "flower": "flower"}
"""An argument on the command line of each process."""


@click.command(short_help="Check a process of this machine, for health checks.")
@click.argument("process", type=click.Choice(list(_MARKS)), required=False)
def check(process: str | None) -> None:
    """Check that a process of this machine works; exit status 1 if it does not.

    Without a name all that run here are checked, and there must be at least one.

    The web tier and Flower must answer, the agent's record in Redis must be fresh. No API key is
    needed.
    """
    settings = settings_here()
    found = [process] if process else _running()
    if not found:
        raise CliError("no web tier, agent or Flower runs here")
    for name in found:
        _check(name, settings)


def _running() -> list[str]:
    """The running processes, by the command lines of `cli.service.processes`."""
    commands = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # the process has just ended
            commands.append(file.read_bytes().decode(errors="replace").split("\0"))
    return [
        name for name, mark in _MARKS.items() if any(mark in arguments for arguments in commands)
    ]


def _check(process: str, settings: Settings) -> None:
    """Raises CliError."""
    if process == "agent":
        _check_agent(settings)
    elif process == "web":
        _check_http(url_of(settings), "/healthz")
    else:
        _check_http(flower.url_of(settings).rstrip("/"), "/healthcheck")


def _check_http(url: str, path: str) -> None:
    """Raises CliError unless the status is 200."""
    try:
        status = ServiceClient(url, answer_timeout_s=_TIMEOUT_S).status(path)
    except Unreachable as exc:
        raise CliError(f"{url}{path} does not answer: {exc.__cause__}") from exc
    if status != HTTPStatus.OK:
        raise CliError(f"{url}{path} answers with status {status}")


def _check_agent(settings: Settings) -> None:
    with running_redis() as client:
        nodes = records.read_nodes(client)
    if settings.node not in (node.id for node in nodes):
        raise CliError(f"no agent of {settings.node} is alive")
