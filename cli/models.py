"""`llmis models list`, `load` and `unload`."""

from typing import Any

import click
from rich.text import Text

from cli import output
from cli.api import ModelView, views
from cli.client import Client
from cli.listings import rate
from cli.operation import begin, follow
from cli.options import client_option, json_option


@click.group(short_help="List, load and unload models.")
def models() -> None:
    """List, load and unload models."""


@models.command("list")
@client_option
@json_option
def list_models(client: Client, is_json: bool) -> None:
    """List the models, loaded or not."""
    raw = client.get("/admin/models")
    if is_json:
        output.print_json(raw)
        return
    columns = (
        *("MODEL", "STATE", "REPLICAS>", "SLOTS>", "QUEUE>", "TOKENS/S>", "CONTEXT>"),
        *("ENGINE", "DEVICE", "KEPT"),
    )
    output.print_table(columns, [_row(model) for model in views(raw, ModelView)], "no model")


def _row(model: ModelView) -> list[str | Text]:
    return [
        model.id,
        state(model),
        str(len(model.replicas)),
        f"{model.busy_slots or 0}/{model.slots or 0}",
        str(model.queue_length or 0),
        rate(model.tokens_per_s),
        str(model.context_length or "-"),
        " ".join(word for word in (model.engine, model.quant) if word) or "-",
        model.device or "-",
        _kept(model),
    ]


def state(model: ModelView) -> Text:
    """A model's state with how far its load is, or why it failed."""
    if model.load is not None:
        progress = output.progress_text(model.load.stage, model.load.fraction)
        return output.state_text(model.state, progress)
    if model.error is not None:
        return output.state_text(model.state, f"({_shortened(model.error.message)})")
    return output.state_text(model.state)


def _shortened(text: str) -> str:
    """For a column; `--json` has all of it."""
    return text if len(text) <= _ERROR_CHARS else f"{text[: _ERROR_CHARS - 1]}…"


def _kept(model: ModelView) -> str:
    """How long a model stays loaded that nobody asks."""
    if model.pin:
        return "pinned"
    return f"{model.ttl_s:g} s" if model.ttl_s else "-"


_ERROR_CHARS = 48
_COUNT = click.IntRange(min=1)


@models.command()
@click.argument("name")
@click.option("--path", help="Weights, under the model folder.  [default: those of llmis.toml]")
@click.option("--engine")
@click.option("--task", type=click.Choice(("auto", "generate", "embed")), help="What it does.")
@click.option("--device", help="cpu, cuda:0, …")
@click.option("--quant", help="Precision of the KV cache: f16, q8_0, …")
@click.option("--context-length", type=_COUNT, metavar="TOKENS", help="Tokens a slot.")
@click.option("--slots", type=_COUNT, help="Requests at the same time.")
@click.option("--threads", type=click.IntRange(min=0), help="Compute threads; 0 = automatic.")
@click.option("--replicas", type=_COUNT)
@click.option("--chat-template", type=click.File(), help="A Jinja file.")
@click.option("--stop", multiple=True, help="A stop string of the template; may be repeated.")
@click.option("--pin/--no-pin", default=None, help="Never unload it to make room.")
@click.option("--ttl-s", type=click.FloatRange(min=0), help="Unload it when unused for so long.")
@click.option("--node", help="The machine to load it on.")
@click.option("--no-wait", is_flag=True, help="Return as soon as the load has begun.")
@client_option
@json_option
def load(client: Client, is_json: bool, no_wait: bool, name: str, **given: Any) -> None:
    """Load a model and wait until it is ready.

    Ctrl-C ends the waiting, not the load. With --json the load's last state.
    """
    body = {"name": name} | {key: value for key, value in given.items() if value is not None}
    if "chat_template" in body:
        body["chat_template"] = given["chat_template"].read()
    body["stop"] = list(given["stop"])
    if not body["stop"]:
        del body["stop"]
    _run(client, "/admin/models/load", body, is_json=is_json, no_wait=no_wait)


@models.command()
@click.argument("name")
@click.option("--now", is_flag=True, help="End its requests instead of waiting for them.")
@click.option("--timeout-s", type=click.FloatRange(min=0), help="Longest wait for its requests.")
@click.option("--no-wait", is_flag=True, help="Return as soon as the unload has begun.")
@client_option
@json_option
def unload(
    client: Client, is_json: bool, no_wait: bool, name: str, now: bool, timeout_s: float | None
) -> None:
    """Unload a model once its requests have ended."""
    body: dict[str, Any] = {"name": name, "mode": "now" if now else "drain"}
    if timeout_s is not None:
        body["timeout_s"] = timeout_s
    _run(client, "/admin/models/unload", body, is_json=is_json, no_wait=no_wait)


def _run(client: Client, path: str, body: dict[str, Any], *, is_json: bool, no_wait: bool) -> None:
    if no_wait:
        begin(client, path, body, is_json=is_json)
    else:
        follow(client, path, body, is_json=is_json)
