"""`llmis ps` and `llmis nodes`."""

import time

import click
from rich.text import Text

from cli import output, text
from cli.api import ModelView, NodeView, ReplicaView, views
from cli.client import Client
from cli.options import client_option, json_option

_UNKNOWN = "-"


@click.command(short_help="List the running replicas.")
@client_option
@json_option
def ps(client: Client, is_json: bool) -> None:
    """List the running replicas: one process with one loaded model each.

    With --json the models, each with its replicas, as the API gives them.
    """
    raw = client.get("/admin/models")
    if is_json:
        output.print_json(raw)
        return
    columns = ("ID", "MODEL", "NODE", "STATE", "SLOTS>", "MEMORY>", "TOKENS/S>", "UPTIME>")
    rows = [_replica_row(m.id, replica) for m in views(raw, ModelView) for replica in m.replicas]
    output.print_table(columns, rows, "no replica is running")


def _replica_row(model: str, replica: ReplicaView) -> list[str | Text]:
    is_loading = replica.state == "loading"
    progress = output.progress_text(replica.stage, replica.fraction) if is_loading else ""
    return [
        replica.id,
        model,
        replica.node or _UNKNOWN,
        output.state_text(replica.state, progress),
        f"{replica.busy_slots}/{replica.slots}",
        _memory(replica),
        rate(replica.tokens_per_s),
        since(replica.started_at),
    ]


def _memory(replica: ReplicaView) -> str:
    if replica.memory_bytes:
        return text.size(replica.memory_bytes)
    if replica.memory_estimated_bytes:
        return f"~{text.size(replica.memory_estimated_bytes)}"
    return _UNKNOWN


@click.command(short_help="List the machines that run replicas.")
@client_option
@json_option
def nodes(client: Client, is_json: bool) -> None:
    """List the machines that run replicas.

    PROMISED is the memory that loads under way will need.
    """
    raw = client.get("/admin/nodes")
    if is_json:
        output.print_json(raw)
        return
    columns = (
        *("ID", "VERSION", "UPTIME>", "CPUS>", "MEMORY FREE/TOTAL>", "PROMISED>", "DEVICES"),
        *("REPLICAS>", "MODELS"),
    )
    output.print_table(columns, [_node_row(n) for n in views(raw, NodeView)], "there is no node")


def _node_row(node: NodeView) -> list[str | Text]:
    return [
        node.id,
        node.version or _UNKNOWN,
        since(node.started_at),
        _UNKNOWN if node.cpus is None else str(node.cpus),
        free_of_total(node.memory_free_bytes, node.memory_total_bytes),
        text.size(node.memory_promised_bytes or 0),
        ", ".join(
            f"{device.id} {free_of_total(device.free_bytes, device.total_bytes)}"
            for device in node.devices
        ),
        str(node.replicas),
        ", ".join(node.models),
    ]


def free_of_total(free_bytes: int | None, total_bytes: int | None) -> str:
    if free_bytes is None or total_bytes is None:
        return _UNKNOWN
    return f"{text.size(free_bytes)} / {text.size(total_bytes)}"


def rate(tokens_per_s: float | None) -> str:
    return f"{tokens_per_s:.1f}" if tokens_per_s else _UNKNOWN


def since(started_at: float | None) -> str:
    # The two clocks may differ: the start was noted on another machine, perhaps.
    return text.duration(time.time() - started_at) if started_at else _UNKNOWN
