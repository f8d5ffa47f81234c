"""Options that several commands have."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cli.address import KEY_VARIABLE, key_for, settings_here, url_of
from cli.client import Client

Command = TypeVar("Command", bound=Callable[..., Any])


def as_client(_context: click.Context, _param: click.Parameter, url: str | None) -> Client:
    """The service at `--url`, or the one of the settings. Raises CliError, click.BadParameter."""
    try:
        if url:
            return Client(url, os.environ.get(KEY_VARIABLE, ""))
        settings = settings_here()
        return Client(url_of(settings), key_for(settings))
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


_URL_HELP = "Address of the service.  [default: host and port of the settings]"


def client_option(command: Command) -> Command:
    """`--url`, which reaches the command as `client`."""
    return click.option(
        "--url", "client", envvar="LLMIS_URL", metavar="URL", callback=as_client, help=_URL_HELP
    )(command)


def url_option(command: Command) -> Command:
    """`--url` as it was given, for a command that looks into what is wrong with the settings."""
    return click.option("--url", envvar="LLMIS_URL", metavar="URL", help=_URL_HELP)(command)


def json_option(command: Command) -> Command:
    return click.option("--json", "is_json", is_flag=True, help="JSON, for scripts.")(command)


def sampling_options(command: Command) -> Command:
    """Which model, and how its tokens are drawn; all None when not given."""
    for option in (
        click.option("--stop", multiple=True, callback=_list_or_none, help="May be repeated."),
        click.option("--seed", type=int),
        click.option("--top-p", type=click.FloatRange(0, 1)),
        click.option("--temperature", type=click.FloatRange(0, 2)),
        click.option("--model", help="[default: the first that is ready]"),
    ):
        command = option(command)
    return command


def _list_or_none(
    _context: click.Context, _param: click.Parameter, values: tuple[str, ...]
) -> list[str] | None:
    return list(values) or None
