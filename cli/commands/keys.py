"""`llmis keys`: create, list and revoke API keys.

It uses Redis, not the service: access to Redis is the permission to create keys.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime

import click
import msgspec

from cli import output
from cli.errors import CliError
from cli.options import Command, json_option
from cli.service.embedded_redis import running_redis
from shared import api_keys
from shared.api_keys import Scope
from shared.clock import clock
from shared.settings.fields import MAX_LIMIT

_UNITS_S = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
_MAX_EXPIRES_S = 3650 * 86400


def _limit_option(option: str, name: str, what: str) -> Callable[[Command], Command]:
    limit = click.IntRange(0, MAX_LIMIT)
    return click.option(option, name, type=limit, help=f"{what}; 0 = no limit.")


@click.group(short_help="Create, list and revoke API keys.")
def keys() -> None:
    """Create, list and revoke API keys. They are checked if the setting `auth` is on.

    Needs Redis (REDIS_URL, or a running `llmis up`), not the service itself.
    """


@keys.command()
@click.argument("name")
@click.option("--scope", type=click.Choice([s.value for s in Scope]), default=Scope.USER.value)
@click.option(
    "--expires",
    metavar="TIME",
    help="From now: 90m, 12h, 30d, 8w; ten years at most.  [default: never]",
)
@_limit_option("--rpm", "requests_per_minute", "Requests per minute")
@_limit_option("--tpm", "tokens_per_minute", "Tokens per minute")
@_limit_option("--max-open", "max_open_requests", "Open requests")
@_limit_option("--max-waiting", "max_waiting_requests", "Waiting requests")
@json_option
def create(name: str, scope: str, expires: str | None, is_json: bool, **given: int | None) -> None:
    """Create a key and print it. It is shown only once.

    Limits that are not given are those of the settings.
    """
    limits = {name: limit for name, limit in given.items() if limit is not None}
    lifetime_s = _seconds(expires) if expires else 0
    with running_redis() as client:
        clock.measure(client)
        expires_at = clock.now() + lifetime_s if expires else 0.0
        key, record = api_keys.create(
            client, name, Scope(scope), expires_at=expires_at, limits=limits
        )
    if is_json:
        output.print_json({"key": key, **msgspec.to_builtins(record)})
        return
    click.echo(key)
    click.echo(
        f"llmis: this is {record.id}, scope {record.scope}; store it, it is shown only once",
        err=True,
    )


@keys.command("list")
@json_option
def list_keys(is_json: bool) -> None:
    """List the keys. The secret parts are not stored and not shown."""
    with running_redis() as client:
        records = sorted(api_keys.read(client).values(), key=lambda record: record.created_at)
    if is_json:
        output.print_json(msgspec.to_builtins(records))
        return
    columns = ("ID", "NAME", "SCOPE", "BEGINS", "CREATED", "EXPIRES")
    rows = [
        [r.id, r.name, r.scope, f"{r.shown}…", _day(r.created_at), _day(r.expires_at)]
        for r in records
    ]
    output.print_table(columns, rows, "there is no key")


@keys.command()
@click.argument("id_or_name")
def revoke(id_or_name: str) -> None:
    """Revoke a key by its id, or all keys of a name. It takes effect within a second.

    Running requests are not ended.
    """
    with running_redis() as client:
        revoked = api_keys.revoke(client, id_or_name)
    if not revoked:
        raise CliError(f"there is no key {id_or_name!r}; `llmis keys list` lists them")
    for record in revoked:
        click.echo(f"revoked {record.id} ({record.name})")


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    if not match:
        raise click.BadParameter(
            f"{text!r} is not like 90m, 12h, 30d or 8w", param_hint="--expires"
        )
    seconds = int(match[1]) * _UNITS_S[match[2]]
    if seconds > _MAX_EXPIRES_S:
        raise click.BadParameter(
            f"{text!r} is more than ten years (3650d); without --expires a key never expires",
            param_hint="--expires",
        )
    return seconds


def _day(at: float) -> str:
    """A number that is not a time is shown as it is: another program may have written it."""
    if not at:
        return "never"
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return f"{at:g}"
