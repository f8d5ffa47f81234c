"""`llmis restart`: restarts every process of a running service, one at a time."""

import time
from collections.abc import Callable

import click

from cli.client import ServiceClient, view
from cli.commands.load_generator import LoadGenerator, Tally
from cli.errors import CliError
from cli.operation_progress import follow
from cli.options import client_option
from cli.text import duration
from shared.admin_api import AdminModelList, NodeList

_POLL_S = 0.2
_TIMEOUT_S = 120.0
_NUM_ANSWERS = 5
"""Answers in a row from new web processes that show that the old ones accept no connections."""


@click.command(short_help="Restart every process, one at a time, while requests are served.")
@click.option(
    "--load",
    "num_clients",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Let N clients send requests meanwhile, and count the failures.",
)
@click.option("--model", help="The model for --load.  [default: the first ready model]")
@client_option
def restart(client: ServiceClient, num_clients: int, model: str | None) -> None:
    """Restart every process of a running service, one at a time, while it serves.

    First the replicas, then the agents, then the web processes. Requests continue in other
    replicas. For a model with a single replica a second one is loaded first if it fits; else its
    requests wait. Exit status 1 if a request of --load failed.
    """
    load = LoadGenerator(client, num_clients, model) if num_clients else None
    if load is not None:
        load.start()
    started_at = time.monotonic()
    try:
        _restart_replicas(client)
        _restart_agents(client)
        _restart_web(client)
        click.echo(f"all processes restarted in {duration(time.monotonic() - started_at)}")
    finally:
        tally = load.stop() if load is not None else None
    if tally is not None and load is not None:
        _report(tally, is_exact=load.is_exact)


def _restart_replicas(client: ServiceClient) -> None:
    for model in view(client.get("/admin/models"), AdminModelList).data:
        for replica in model.replicas:
            if replica.state == "ready":
                click.echo(f"replica {replica.id}")
                follow(client, "/admin/replicas/restart", {"id": replica.id}, is_json=False)


def _restart_agents(client: ServiceClient) -> None:
    for node in view(client.get("/admin/nodes"), NodeList).data:
        click.echo(f"agent of {node.id}")
        before = node.started_at
        client.post("/admin/nodes/restart", {"id": node.id})

        def is_back(node_id: str = node.id, before: float = before) -> bool:
            found = view(client.get("/admin/nodes"), NodeList).data
            return any(n.id == node_id and n.started_at > before for n in found)

        _wait(is_back, f"the agent of {node.id} has not come back")


def _restart_web(client: ServiceClient) -> None:
    click.echo("web processes")
    asked_at = client.post("/admin/web/restart", {})["asked_at"]
    num_new = 0

    def are_new() -> bool:
        nonlocal num_new
        is_new = client.get("/admin/web")["started_at"] > asked_at
        num_new = num_new + 1 if is_new else 0
        return num_new >= _NUM_ANSWERS

    _wait(are_new, "the new web processes do not answer")


def _wait(is_done: Callable[[], bool], message: str) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not is_done():
        if time.monotonic() > deadline:
            raise CliError(f"{message} within {_TIMEOUT_S:g} s; see its log")
        time.sleep(_POLL_S)


def _report(tally: Tally, *, is_exact: bool) -> None:
    """Print the results. Raises CliError if a request failed."""
    click.echo(f"{tally.num_requests} requests, {tally.num_failed} failed")
    if is_exact:
        click.echo(f"{tally.num_lost} tokens lost, {tally.num_doubled} doubled")
    else:
        click.echo("the right answer is not known: texts were not compared")
    for message in tally.errors:
        click.echo(f"  {message}", err=True)
    if tally.num_failed:
        raise CliError(f"{tally.num_failed} of {tally.num_requests} requests failed")
