"""`llmis up`, `web`, `agent` and `flower`: the processes of the service, in the foreground."""

import os
import sys
from collections.abc import Mapping

import click

from cli.address import environment, settings_here
from cli.errors import CliError
from cli.service import processes
from cli.service.flower import credentials
from shared.settings.fields import Settings


@click.command(short_help="Start the whole service, in the foreground.")
def up() -> None:
    """Start the whole service on this machine, in the foreground; Ctrl-C stops it.

    Redis (unless REDIS_URL is set), the models of llmis.toml, the web tier and Flower.
    """
    os.environ.update(environment())
    # Here: the other commands of this module do not need its imports.
    from cli.service import up as service

    sys.exit(service.main())


@click.command(short_help="Run the web tier, in the foreground.")
def web() -> None:
    """Run the web tier of the service at REDIS_URL, in the foreground."""
    _settings()
    _become(processes.web())


@click.command(short_help="Run this machine's agent, in the foreground.")
def agent() -> None:
    """Run this machine's agent, which starts and stops replicas, in the foreground."""
    _settings()
    _become(processes.agent())


@click.command(short_help="Run Flower, in the foreground.")
def flower() -> None:
    """Run Flower, which shows the queues and workers at REDIS_URL, in the foreground."""
    settings = _settings()
    if not settings.flower_port:
        raise CliError("flower_port = 0 turns Flower off: set it, or LLMIS_FLOWER_PORT")
    _become(processes.flower(settings), credentials(settings))


def _settings() -> Settings:
    """The settings of a process that joins a service. Raises CliError."""
    settings = settings_here()
    if not settings.redis_url:
        raise CliError("redis_url is empty: set REDIS_URL to the Redis of the service")
    return settings


def _become(command: list[str], more: Mapping[str, str] | None = None) -> None:
    """Replace this process by a command, so that a supervisor's signals reach it."""
    sys.stdout.flush()
    variables = environment() | dict(more or {})
    os.execve(command[0], command, variables)  # noqa: S606 # nosec B606 # commands of this project alone
