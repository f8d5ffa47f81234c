"""`llmis status`: the service on one screen."""

from typing import Any

import click
from rich.text import Text

from cli import output
from cli.client import Readiness, ServiceClient, ServiceVersion, view
from cli.commands import models
from cli.commands.listings import free_of_total, uptime
from cli.errors import ServiceError
from cli.options import client_option, json_option
from cli.text import one_line
from shared.admin_api import AdminModelList, NodeList
from shared.version import VERSION

_NUM_COLUMNS = 5
"""Of the list of models: those that fit on any screen."""


@click.command(short_help="Show the service on one screen.")
@client_option
@json_option
def status(client: ServiceClient, is_json: bool) -> None:
    """Show the service on one screen. Exit status 1 if it is not ready."""
    raw_version = client.get("/version")
    raw_readiness = client.get("/readyz", accept=503)
    answers = {"nodes": _get(client, "/admin/nodes"), "models": _get(client, "/admin/models")}
    readiness = view(raw_readiness, Readiness)
    if is_json:
        output.print_json({"version": raw_version, "readyz": raw_readiness, **answers})
    else:
        _show_service(client.url, view(raw_version, ServiceVersion).version, readiness)
        _show_nodes(answers["nodes"])
        _show_models(answers["models"])
    if not readiness.is_ready:
        raise click.exceptions.Exit(1)


def _get(client: ServiceClient, path: str) -> Any:
    """The answer for a part of the screen, or the error in the API's format."""
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
                uptime(node.uptime_s),
                str(node.cpus),
                free_of_total(node.memory_free_bytes, node.memory_total_bytes),
                str(node.replicas),
            )
            for node in view(raw, NodeList).data
        ]
        click.echo()
        output.print_table(columns, rows, "there is no node")


def _show_models(raw: Any) -> None:
    if not _show_error("models", raw):
        rows = [models.row(model)[:_NUM_COLUMNS] for model in view(raw, AdminModelList).data]
        click.echo()
        output.print_table(models.COLUMNS[:_NUM_COLUMNS], rows, "no model")


def _show_error(part: str, raw: Any) -> bool:
    if isinstance(raw, dict) and "error" in raw:
        click.echo(f"\n{part}: {one_line(raw['error']['message'])}")
        return True
    return False
