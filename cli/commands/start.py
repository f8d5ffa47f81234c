"""`llmis up`, `web`, `agent` and `flower`: the processes of the service, in the foreground."""

import os
import sys
from collections.abc import Mapping

import click

from cli import processes
from cli.address import environment
from cli.errors import CliError
from cli.flower import credentials
from shared import settings as settings_module
from shared.errors import SettingsError
from shared.settings import Settings


@click.command(short_help="Start everything here, in the foreground.")
def up() -> None:
    """Start everything here, in the foreground; Ctrl-C stops it.

    Redis (unless REDIS_URL is set), the models of llmis.toml, the web tier and Flower.
    """
    os.environ.update(environment())
    # Of all commands this one alone needs Redis and what else the start takes.
    from cli import up as service

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
        raise CliError("flower_port = 0 means no Flower: set it, or LLMIS_FLOWER_PORT")
    _become(processes.flower(settings), credentials(settings))


def _settings() -> Settings:
    """The settings of a process that joins a service. Raises CliError."""
    try:
        settings = settings_module.load(environment())
    except SettingsError as exc:
        raise CliError(str(exc)) from exc
    if not settings.redis_url:
        raise CliError("redis_url is empty: set REDIS_URL to the Redis of the service")
    return settings


def _become(command: list[str], more: Mapping[str, str] | None = None) -> None:
    """Run a command in place of this process: signals reach it, and its supervisor knows it."""
    sys.stdout.flush()
    variables = environment() | dict(more or {})
    os.execve(command[0], command, variables)  # noqa: S606 # nosec B606 # of this project alone
