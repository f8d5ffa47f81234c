"""`llmis keys`: make, list and revoke API keys.

Talks to Redis, not to the service: whoever can read `REDIS_URL` is the one who may make keys.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click
import msgspec
import redis

from cli import output
from cli.address import environment
from cli.embedded_redis import url_path
from cli.errors import CliError
from cli.options import json_option
from shared import api_keys
from shared import settings as settings_module
from shared.api_keys import ApiKey, Scope
from shared.connections import connect
from shared.errors import SettingsError
from shared.limits import MAX_LIMIT

_LIMIT = click.IntRange(0, MAX_LIMIT)
_UNITS_S = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
_MAX_EXPIRES_S = 3650 * 86400


@click.group(short_help="Make, list and revoke API keys.")
def keys() -> None:
    """Make, list and revoke API keys. They hold when the setting `auth` is on.

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
@click.option("--rpm", type=_LIMIT, help="Requests per minute; 0 = no limit.")
@click.option("--tpm", type=_LIMIT, help="Tokens per minute; 0 = no limit.")
@click.option("--max-open", type=_LIMIT, help="Open requests; 0 = no limit.")
@click.option("--max-waiting", type=_LIMIT, help="Waiting requests; 0 = no limit.")
@json_option
def create(
    name: str,
    scope: str,
    expires: str | None,
    rpm: int | None,
    tpm: int | None,
    max_open: int | None,
    max_waiting: int | None,
    is_json: bool,
) -> None:
    """Make a key and print it. It is shown this once.

    Limits that are not given are those of the settings.
    """
    asked = {
        "requests_per_minute": rpm,
        "tokens_per_minute": tpm,
        "max_open_requests": max_open,
        "max_waiting_requests": max_waiting,
    }
    limits = {name: limit for name, limit in asked.items() if limit is not None}
    expires_at = time.time() + _seconds(expires) if expires else 0.0
    with _redis() as client:
        key, record = api_keys.create(
            client, name, Scope(scope), expires_at=expires_at, limits=limits
        )
    if is_json:
        output.print_json({"key": key, **_body(record)})
        return
    click.echo(key)
    click.echo(
        f"llmis: this is {record.id}, scope {record.scope}; keep it, it is shown once", err=True
    )


@keys.command("list")
@json_option
def list_keys(is_json: bool) -> None:
    """List the keys, without the keys themselves."""
    with _redis() as client:
        records = sorted(api_keys.read(client).values(), key=lambda record: record.created_at)
    if is_json:
        output.print_json([_body(record) for record in records])
        return
    columns = ("ID", "NAME", "SCOPE", "BEGINS", "MADE", "EXPIRES")
    rows = [
        [r.id, r.name, r.scope, f"{r.shown}…", _day(r.created_at), _day(r.expires_at)]
        for r in records
    ]
    output.print_table(columns, rows, "there is no key")


@keys.command()
@click.argument("id_or_name")
def revoke(id_or_name: str) -> None:
    """Revoke a key by its id, or all keys of a name, within a second.

    Requests that run are not ended.
    """
    with _redis() as client:
        revoked = api_keys.revoke(client, id_or_name)
    if not revoked:
        raise CliError(f"there is no key {id_or_name!r}; `llmis keys list` lists them")
    for record in revoked:
        click.echo(f"revoked {record.id} ({record.name})")


@contextlib.contextmanager
def _redis() -> Iterator["redis.Redis"]:
    """A client of the service's Redis: that of the settings, or the embedded one that runs."""
    try:
        settings = settings_module.load(environment())
        url = settings.redis_url
        if not url and url_path(settings).exists():
            url = url_path(settings).read_text("utf-8").strip()
        if not url:
            raise CliError("no Redis: set REDIS_URL, or start the service with `llmis up`")
        yield connect(msgspec.structs.replace(settings, redis_url=url), max_connections=1)
    except SettingsError as exc:
        raise CliError(str(exc)) from exc
    except (redis.RedisError, ValueError) as exc:
        raise CliError(f"Redis does not answer: {exc}") from exc


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    if not match:
        raise click.BadParameter(
            f"{text!r} is not like 90m, 12h, 30d or 8w", param_hint="--expires"
        )
    seconds = int(match[1]) * _UNITS_S[match[2]]
    if seconds > _MAX_EXPIRES_S:
        raise click.BadParameter(
            f"{text!r} is more than ten years (3650d); leave it out for a key without an end",
            param_hint="--expires",
        )
    return seconds


def _body(record: ApiKey) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(record)
    return body


def _day(at: float) -> str:
    """A number that is no time is shown as it is: others may have written the record."""
    if not at:
        return "never"
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return f"{at:g}"
