"""`llmis restart`: every process of a running service, one at a time, while it serves."""

import time
from collections.abc import Callable

import click

from cli.api import ModelView, NodeView, views
from cli.client import Client
from cli.errors import CliError
from cli.load_generator import LoadGenerator, Tally
from cli.operation import follow
from cli.options import client_option
from cli.text import duration

_POLL_S = 0.2
_PATIENCE_S = 120.0
_NUM_ANSWERS = 5
"""So many in a row come from new web processes: the old ones take no connections any more."""


@click.command(short_help="Restart every process, one at a time, while requests are served.")
@click.option(
    "--load", "num_clients", type=click.IntRange(min=0), default=0, metavar="N",
    help="Let N clients send requests all the time, and count what fails.",
)  # fmt: skip
@click.option("--model", help="The model they ask.  [default: the first that is ready]")
@client_option
def restart(client: Client, num_clients: int, model: str | None) -> None:
    """Restart every process of a running service, one at a time, while it serves.

    Each replica, the agents, then the web processes. Requests go on in other replicas; those of
    a model with a single one move to its second, if there is room for it, or wait. Exit status
    1 when a request of --load has failed.
    """
    load = LoadGenerator(client, num_clients, model) if num_clients else None
    if load is not None:
        load.start()
    started_at = time.monotonic()
    try:
        _restart_replicas(client)
        _restart_agents(client)
        _restart_web(client)
        click.echo(f"everything was restarted within {duration(time.monotonic() - started_at)}")
    finally:
        tally = load.stop() if load is not None else None
    if tally is not None and load is not None:
        _report(tally, is_exact=load.is_exact)


def _restart_replicas(client: Client) -> None:
    for model in views(client.get("/admin/models"), ModelView):
        for replica in model.replicas:
            if replica.state == "ready":
                click.echo(f"replica {replica.id}")
                follow(client, "/admin/replicas/restart", {"id": replica.id}, is_json=False)


def _restart_agents(client: Client) -> None:
    for node in views(client.get("/admin/nodes"), NodeView):
        click.echo(f"agent of {node.id}")
        before = node.started_at or 0.0
        client.post("/admin/nodes/restart", {"id": node.id})

        def is_back(node_id: str = node.id, before: float = before) -> bool:
            found = views(client.get("/admin/nodes"), NodeView)
            return any(n.id == node_id and (n.started_at or 0.0) > before for n in found)

        _wait(is_back, f"the agent of {node.id} has not come back")


def _restart_web(client: Client) -> None:
    click.echo("web processes")
    asked_at = client.post("/admin/web/restart", {})["asked_at"]
    num_new = 0

    def are_new() -> bool:
        nonlocal num_new
        is_new = client.get("/admin/web")["started_at"] > asked_at
        num_new = num_new + 1 if is_new else 0
        return num_new >= _NUM_ANSWERS

    _wait(are_new, "the new web processes do not answer")


def _wait(is_done: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not is_done():
        if time.monotonic() > deadline:
            raise CliError(f"{complaint} within {_PATIENCE_S:g} s; see its log")
        time.sleep(_POLL_S)


def _report(tally: Tally, *, is_exact: bool) -> None:
    """Raises CliError when something failed."""
    click.echo(f"{tally.num_requests} requests, {tally.num_failed} failed")
    if is_exact:
        click.echo(f"{tally.num_lost} tokens lost, {tally.num_doubled} doubled")
    else:
        click.echo("the model does not count: its texts were not compared")
    for message in tally.errors:
        click.echo(f"  {message}", err=True)
    if tally.num_failed:
        raise CliError(f"{tally.num_failed} of {tally.num_requests} requests failed")
