"""`llmis status`: the service on one screen."""

from typing import Any

import click
from msgspec import Struct
from rich.text import Text

from cli import output
from cli.api import ModelView, NodeView, view, views
from cli.client import Client
from cli.errors import ServiceError
from cli.listings import free_of_total, since
from cli.models import state
from cli.options import client_option, json_option
from cli.text import one_line
from shared.version import VERSION


class _Version(Struct, frozen=True):
    version: str = ""


class Readiness(Struct, frozen=True):
    """`GET /readyz`, whatever its HTTP status."""

    status: str = ""
    reasons: list[str] = []


@click.command(short_help="Show the service on one screen.")
@client_option
@json_option
def status(client: Client, is_json: bool) -> None:
    """Show the service on one screen. Exit status 1 when it is not ready."""
    raw_version = client.get("/version")
    raw_readiness = client.get("/readyz", accept=503)
    answers = {"nodes": _ask(client, "/admin/nodes"), "models": _ask(client, "/admin/models")}
    readiness = view(raw_readiness, Readiness)
    is_ready = readiness.status == "ready"
    if is_json:
        output.print_json({"version": raw_version, "readyz": raw_readiness, **answers})
    else:
        _show_service(client.url, view(raw_version, _Version).version, readiness)
        _show_nodes(answers["nodes"])
        _show_models(answers["models"])
    if not is_ready:
        raise click.exceptions.Exit(1)


def _ask(client: Client, path: str) -> Any:
    """A part of the screen; its error stands in its place, in the API's shape."""
    try:
        return client.get(path)
    except ServiceError as exc:
        return {"error": {"message": exc.message}}


def _show_service(url: str, version: str, readiness: Readiness) -> None:
    screen = output.console()
    screen.print(Text(f"llmis {one_line(version)} at {one_line(url)}", style="bold"))
    screen.print(output.state_text(readiness.status or "not ready", "; ".join(readiness.reasons)))
    if version != VERSION:
        click.echo(f"llmis: this command is {VERSION}, the service is not", err=True)


def _show_nodes(raw: Any) -> None:
    columns = ("NODE", "UPTIME>", "CPUS>", "MEMORY FREE/TOTAL>", "REPLICAS>")
    if not _show_error("nodes", raw):
        rows = [
            (
                node.id,
                since(node.started_at),
                "-" if node.cpus is None else str(node.cpus),
                free_of_total(node.memory_free_bytes, node.memory_total_bytes),
                str(node.replicas),
            )
            for node in views(raw, NodeView)
        ]
        click.echo()
        output.print_table(columns, rows, "there is no node")


def _show_models(raw: Any) -> None:
    columns = ("MODEL", "STATE", "REPLICAS>", "SLOTS>", "QUEUE>")
    if not _show_error("models", raw):
        rows = [
            (
                model.id,
                state(model),
                str(len(model.replicas)),
                f"{model.busy_slots or 0}/{model.slots or 0}",
                str(model.queue_length or 0),
            )
            for model in views(raw, ModelView)
        ]
        click.echo()
        output.print_table(columns, rows, "no model")


def _show_error(part: str, raw: Any) -> bool:
    if isinstance(raw, dict) and "error" in raw:
        click.echo(f"\n{part}: {one_line(raw['error']['message'])}")
        return True
    return False
