"""Options shared by several commands."""

import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cli.address import KEY_VARIABLE, key_for, settings_here, url_of
from cli.client import ServiceClient

Command = TypeVar("Command", bound=Callable[..., Any])


def as_client(_context: click.Context, _param: click.Parameter, url: str | None) -> ServiceClient:
    """The service at `--url`, else that of the settings. Raises CliError, click.BadParameter."""
    try:
        if url:
            return ServiceClient(url, os.environ.get(KEY_VARIABLE, ""))
        settings = settings_here(" (--url or LLMIS_URL names the service without settings)")
        return ServiceClient(url_of(settings), key_for(settings))
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


class Number(click.FloatRange):
    """A number between two others, both included; `nan`, which compares with none, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


_URL_HELP = "Address of the service.  [default: host and port of the settings]"


def client_option(command: Command) -> Command:
    """`--url`, passed to the command as `client`."""
    return click.option(
        "--url", "client", envvar="LLMIS_URL", metavar="URL", callback=as_client, help=_URL_HELP
    )(command)


def url_option(command: Command) -> Command:
    """`--url` as it was given, for a command that works with broken settings, too."""
    return click.option("--url", envvar="LLMIS_URL", metavar="URL", help=_URL_HELP)(command)


def json_option(command: Command) -> Command:
    return click.option("--json", "is_json", is_flag=True, help="JSON, for scripts.")(command)


def sampling_options(command: Command) -> Command:
    """The model and the sampling parameters; each is None if not given."""
    for option in (
        click.option("--stop", multiple=True, callback=list_or_none, help="May be repeated."),
        click.option("--seed", type=int),
        click.option("--top-p", type=Number(0, 1)),
        click.option("--temperature", type=Number(0, 2)),
        click.option("--model", help="[default: the first ready model]"),
    ):
        command = option(command)
    return command


def list_or_none(
    _context: click.Context, _param: click.Parameter, values: tuple[str, ...]
) -> list[str] | None:
    return list(values) or None
