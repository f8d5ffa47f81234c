"""Writes the tables of docs/openai.md: `make tables`.

What OpenAI has is read from the types of the `openai` package; what the service takes, from its
own OpenAPI document; why it does not take the rest, from `app.schemas.parse`.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import openai
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params

from app import factory
from app.schemas.parse import IGNORED, REFUSED
from shared.settings.fields import Settings
from tools.marked_tables import filled, markdown
from tools.openai_endpoints import GROUPS

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "openai.md"
PARAMETERS = {
    "/v1/chat/completions": chat_create_params.CompletionCreateParamsNonStreaming,
    "/v1/completions": completion_create_params.CompletionCreateParamsNonStreaming,
    "/v1/embeddings": embedding_create_params.EmbeddingCreateParams,
}
"""Endpoint → OpenAI's type of its parameters."""
_NO_ENDPOINTS = {"with_raw_response", "with_streaming_response"}


class UndecidedError(Exception):
    """OpenAI has a parameter or endpoint that is neither supported, ignored nor refused here."""


def tables(api: dict[str, Any]) -> dict[str, str]:
    """The tables by the names of their places. `api` is the OpenAPI document.

    Raises UndecidedError.
    """
    found = {path: _parameter_table(api, path) for path in PARAMETERS}
    return {"endpoints": _endpoint_table(api), **found}


def _parameter_table(api: dict[str, Any], path: str) -> str:
    ours = _properties(api, path)
    theirs = get_type_hints(PARAMETERS[path])
    rows = [["parameter", "verdict", "how"], ["---", "---", "---"]]
    for name in sorted(theirs):
        rows.append([f"`{name}`", *_verdict(api, path, name, ours)])
    for name in sorted(ours.keys() - theirs.keys()):
        rows.append([f"`{name}`", "llmis's own", _description(api, ours[name])])
    return markdown(rows)


def _verdict(api: dict[str, Any], path: str, name: str, ours: dict[str, Any]) -> list[str]:
    if name in ours:
        has_effect = not ours[name].get("description", "").startswith("Accepted; ")
        return ["supported" if has_effect else "accepted, no effect", _description(api, ours[name])]
    if path not in api["paths"]:
        return ["not served", "the endpoint is not there yet"]
    if name in IGNORED:
        return ["ignored", IGNORED[name]]
    if name in REFUSED:
        return ["refused", REFUSED[name].rstrip(".")]
    raise UndecidedError(f"{path}: OpenAI's parameter {name} is unknown to app.schemas.parse")


def _endpoint_table(api: dict[str, Any]) -> str:
    """One row for each of OpenAI's groups of endpoints, as the client's attributes name them."""
    groups = [
        name
        for name, member in vars(openai.OpenAI).items()
        if type(member).__name__ == "cached_property" and name not in _NO_ENDPOINTS
    ]
    unknown = set(groups) ^ GROUPS.keys()
    if unknown:
        raise UndecidedError(f"tools/openai_endpoints.py and openai differ by {sorted(unknown)}")
    rows = [["`client.…`", "verdict", "how"], ["---", "---", "---"]]
    for name in sorted(groups):
        served, reason = GROUPS[name]
        are_served = [path for path in served if path in api["paths"]]
        paths = ", ".join(f"`{path}`" for path in are_served)
        rows.append([f"`{name}`", "supported" if are_served else "not served", paths or reason])
    return markdown(rows)


def _properties(api: dict[str, Any], path: str) -> dict[str, Any]:
    if path not in api["paths"]:
        return {}
    content = api["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    properties = _resolved(api, content["schema"])["properties"]
    return {name: schema for name, schema in properties.items() if not _is_without_effect(schema)}


def _is_without_effect(schema: dict[str, Any]) -> bool:
    return schema.get("description", "").startswith(("Ignored: ", "Refused: "))


def _resolved(api: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    return api["components"]["schemas"][schema["$ref"].rpartition("/")[2]]


def _description(api: dict[str, Any], schema: dict[str, Any]) -> str:
    text = schema.get("description", "").rstrip(".")
    for mark in ("Extension: ", "Accepted; "):
        text = text.removeprefix(mark)
    text = text[:1].lower() + text[1:]
    return "; ".join(part for part in (_type(api, schema), text) if part)


def _type(api: dict[str, Any], schema: dict[str, Any]) -> str:
    """Describe a schema: its types and ranges."""
    if "anyOf" in schema:
        kinds = [_type(api, option) for option in schema["anyOf"] if option != {"type": "null"}]
        return " or ".join(dict.fromkeys(kinds))
    schema = _resolved(api, schema)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "")
    if kind == "array":
        return _list(_type(api, schema.get("items", {})), schema.get("maxItems"))
    return " ".join(part for part in (kind, _range(schema)) if part)


def _list(items: str, most: int | None) -> str:
    many = f"{items}s" if items.isalpha() else items or "values"
    return f"list of up to {most} {many}" if most else f"list of {many}"


def _range(schema: dict[str, Any]) -> str:
    """The bounds of a number, without those of its format (int32)."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if high is not None and high >= 2**31 - 1:
        high = None
    if low is not None and low <= -(2**31):
        low = None
    if "exclusiveMinimum" in schema:
        return f"over {schema['exclusiveMinimum']}" + (f", to {high}" if high is not None else "")
    if low is not None and high is not None:
        return f"{low} to {high}"
    if "maxProperties" in schema:
        return f"of up to {schema['maxProperties']} entries"
    return f"from {low}" if low is not None else f"to {high}" if high is not None else ""


def main() -> None:
    app = factory.bare_app()
    app.extensions["llmis"] = SimpleNamespace(settings=Settings())
    factory.register_routes(app)
    api = json.loads(app.extensions["llmis_openapi"])
    try:
        DOCUMENT.write_text(filled(DOCUMENT.read_text(), tables(api)))
    except UndecidedError as exc:
        sys.exit(f"{exc}: decide there what becomes of it.")


if __name__ == "__main__":
    main()
