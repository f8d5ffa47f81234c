"""`llmis ps` and `llmis nodes`."""

import click
from rich.text import Text

from cli import output, text
from cli.client import ServiceClient, view
from cli.options import client_option, json_option
from shared.admin_api import AdminModelList, Node, NodeList, Replica

_UNKNOWN = "-"
_NODE_COLUMNS = (
    "ID",
    "VERSION",
    "UPTIME>",
    "CPUS>",
    "MEMORY FREE/TOTAL>",
    "PROMISED>",
    "DEVICES",
    "REPLICAS>",
    "MODELS",
)


@click.command(short_help="List the running replicas.")
@client_option
@json_option
def ps(client: ServiceClient, is_json: bool) -> None:
    """List the running replicas: one process with one loaded model each.

    With --json: the models, each with its replicas, as in the API.
    """
    raw = client.get("/admin/models")
    if is_json:
        output.print_json(raw)
        return
    columns = ("ID", "MODEL", "NODE", "STATE", "SLOTS>", "MEMORY>", "TOKENS/S>", "UPTIME>")
    models = view(raw, AdminModelList).data
    rows = [_replica_row(model.id, replica) for model in models for replica in model.replicas]
    output.print_table(columns, rows, "no replica is running")


def _replica_row(model: str, replica: Replica) -> list[str | Text]:
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
        uptime(replica.uptime_s),
    ]


def _memory(replica: Replica) -> str:
    if replica.memory_bytes:
        return text.size(replica.memory_bytes)
    if replica.memory_estimated_bytes:
        return f"~{text.size(replica.memory_estimated_bytes)}"
    return _UNKNOWN


@click.command(short_help="List the machines that run replicas.")
@client_option
@json_option
def nodes(client: ServiceClient, is_json: bool) -> None:
    """List the machines that run replicas.

    PROMISED is the memory that running loads will still take.
    """
    raw = client.get("/admin/nodes")
    if is_json:
        output.print_json(raw)
    else:
        rows = [_node_row(node) for node in view(raw, NodeList).data]
        output.print_table(_NODE_COLUMNS, rows, "there is no node")


def _node_row(node: Node) -> list[str | Text]:
    return [
        node.id,
        node.version or _UNKNOWN,
        uptime(node.uptime_s),
        str(node.cpus),
        free_of_total(node.memory_free_bytes, node.memory_total_bytes),
        text.size(node.memory_promised_bytes),
        ", ".join(f"{d.id} {free_of_total(d.free_bytes, d.total_bytes)}" for d in node.devices),
        str(node.replicas),
        ", ".join(node.models),
    ]


def free_of_total(free_bytes: int, total_bytes: int) -> str:
    return f"{text.size(free_bytes)} / {text.size(total_bytes)}"


def rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.1f}" if tokens_per_s else _UNKNOWN


def uptime(seconds: float) -> str:
    return text.duration(seconds) if seconds else _UNKNOWN
