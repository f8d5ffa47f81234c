"""`llmis models list`, `load` and `unload`."""

from typing import Any

import click
from rich.text import Text

from cli import output
from cli.client import ServiceClient, view
from cli.commands.listings import rate
from cli.errors import CliError, ServiceError
from cli.operation_progress import begin, follow
from cli.options import Number, client_option, json_option, list_or_none
from shared.admin_api import MAX_UNLOAD_S, AdminModel, AdminModelList
from shared.settings.model_settings import MAX_IDLE_S

COLUMNS = [
    "MODEL",
    "STATE",
    "REPLICAS>",
    "SLOTS>",
    "QUEUE>",
    "TOKENS/S>",
    "CONTEXT>",
    "ENGINE",
    "DEVICE",
    "KEPT",
]
_ERROR_CHARS = 48
_COUNT = click.IntRange(min=1)


@click.group(short_help="List, load and unload models.")
def models() -> None:
    """List, load and unload models."""


@models.command("list")
@client_option
@json_option
def list_models(client: ServiceClient, is_json: bool) -> None:
    """List the models, loaded or not."""
    raw = client.get("/admin/models")
    if is_json:
        output.print_json(raw)
    else:
        rows = [row(model) for model in view(raw, AdminModelList).data]
        output.print_table(COLUMNS, rows, "no model")


def row(model: AdminModel) -> list[str | Text]:
    return [
        model.id,
        _state(model),
        str(len(model.replicas)),
        f"{model.busy_slots}/{model.slots}",
        str(model.queue_length),
        rate(model.tokens_per_s),
        str(model.context_length or "-"),
        " ".join(word for word in (model.engine, model.quant) if word) or "-",
        model.device or "-",
        _kept(model),
    ]


def _state(model: AdminModel) -> Text:
    """A model's state with the progress of its load, or the reason of its failure."""
    rest = ""
    if model.load is not None:
        rest = output.progress_text(model.load.stage, model.load.fraction)
    elif model.error is not None:
        message = model.error.message
        is_long = len(message) > _ERROR_CHARS  # `--json` shows all of it
        rest = f"({message[: _ERROR_CHARS - 1]}…)" if is_long else f"({message})"
    return output.state_text(model.state, rest)


def _kept(model: AdminModel) -> str:
    """How long a model stays loaded without a request."""
    if model.pin:
        return "pinned"
    return f"{model.ttl_s:g} s" if model.ttl_s else "-"


@models.command()
@click.argument("name")
@click.argument("path", metavar="[FILE]", required=False)
@click.option("--path", "path_option", metavar="FILE", help="The same as the argument FILE.")
@click.option("--engine")
@click.option(
    "--task", type=click.Choice(("auto", "generate", "embed")), help="What the model does."
)
@click.option("--device", help="cpu, cuda:0, …")
@click.option("--quant", help="Precision of the KV cache: f16, q8_0, …")
@click.option("--context-length", type=_COUNT, metavar="TOKENS", help="Tokens per slot.")
@click.option("--slots", type=_COUNT, help="Concurrent requests.")
@click.option("--threads", type=click.IntRange(min=0), help="Compute threads; 0 = automatic.")
@click.option("--replicas", type=_COUNT)
@click.option("--chat-template", type=click.File(), help="A Jinja file.")
@click.option(
    "--stop",
    multiple=True,
    callback=list_or_none,
    help="A stop string of the template; may be repeated.",
)
@click.option("--pin/--no-pin", default=None, help="Never unload it to free memory.")
@click.option(
    "--ttl-s", type=Number(0, MAX_IDLE_S), help="Seconds without a request until it is unloaded."
)
@click.option("--node", help="The machine to load it on.")
@click.option("--no-wait", is_flag=True, help="Return once the load has started.")
@client_option
@json_option
def load(client: ServiceClient, is_json: bool, no_wait: bool, name: str, **given: Any) -> None:
    """Load a model and wait until it is ready.

    FILE has the weights: a path under the model folder, or a folder there. Without it: that of
    llmis.toml.

    Ctrl-C ends the wait, not the load. With --json: the last state of the load.
    """
    option = given.pop("path_option")
    if option and given["path"] and option != given["path"]:
        raise click.UsageError("FILE is given twice, once with --path.")
    given["path"] = given["path"] or option
    body = {"name": name} | {key: value for key, value in given.items() if value is not None}
    if "chat_template" in body:
        body["chat_template"] = given["chat_template"].read()
    try:
        (begin if no_wait else follow)(client, "/admin/models/load", body, is_json=is_json)
    except ServiceError as exc:
        if exc.param in given:
            raise CliError(f"{exc.message} (option --{exc.param.replace('_', '-')})") from exc
        raise


@models.command()
@click.argument("name")
@click.option("--now", is_flag=True, help="End its requests instead of waiting for them.")
@click.option("--timeout-s", type=Number(0, MAX_UNLOAD_S), help="Longest wait for its requests.")
@click.option("--no-wait", is_flag=True, help="Return once the unload has started.")
@client_option
@json_option
def unload(client: ServiceClient, is_json: bool, no_wait: bool, now: bool, **given: Any) -> None:
    """Unload a model once its requests have ended."""
    body = {key: value for key, value in given.items() if value is not None}
    body["mode"] = "now" if now else "drain"
    (begin if no_wait else follow)(client, "/admin/models/unload", body, is_json=is_json)
