"""Forced calls of models with other call formats: the counter model behind other templates."""

import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.conftest import Service
from tests.support.admin_client import load, unload

_MARKS = {
    "hermes": "<tool_call>",
    "xml": "<tool_call> <function=",
    "llama": '<|start_header_id|> "parameters"',
    "mistral": "[TOOL_CALLS]",
}
_CALL = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": "^[ab]{3}-[0-9]$"},
        "again": {"$ref": "#/$defs/call/properties/id"},
        "kind": {"enum": ["x", 5]},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["id", "again", "kind"],
}
_SCHEMA = {"$ref": "#/$defs/call", "$defs": {"call": _CALL}}


@pytest.fixture(scope="module", params=_MARKS)
def model(service: Service, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"calls-{request.param}"
    template = f"{{{{ messages[-1].content }}}}{{% if tools %}}{{# {_MARKS[request.param]} #}}"
    template += "{% for tool in tools %} 7{% endfor %}{% endif %}"
    assert load(service, name, chat_template=template)[0] == 200
    yield name
    unload(service, name, mode="now")


def _ask(client: openai.OpenAI, model: str, parameters: dict[str, Any], *, strict: bool) -> Any:
    function = {"name": "f", "parameters": parameters, "strict": strict}
    return client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "17"}],
        tools=[{"type": "function", "function": function}],  # type: ignore[list-item]
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=300,
        temperature=0,
    )


def test_the_schema_of_a_tool_holds_in_its_calls(service: Service, model: str) -> None:
    choice = _ask(service.openai(), model, _SCHEMA, strict=True).choices[0]
    (call,) = choice.message.tool_calls
    arguments = json.loads(call.function.arguments)
    while arguments is not None:
        assert re.fullmatch("[ab]{3}-[0-9]", arguments["id"])
        assert re.fullmatch("[ab]{3}-[0-9]", arguments["again"])
        assert arguments["kind"] in ("x", 5)
        assert set(arguments) <= set(_CALL["properties"])
        arguments = arguments.get("next")


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"contains": {}}}},
        {"properties": {"a": {"type": "string", "format": "nonsense"}}},
        {"properties": {"a": {"pattern": "(?=x)"}}},
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(
    service: Service, model: str, schema: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError, match="the JSON schema of the tool 'f'") as caught:
        _ask(service.openai(), model, schema, strict=True)
    assert caught.value.param == "tools"
    assert "call_0" not in str(caught.value)


def test_a_strict_tool_may_only_require_what_it_describes(service: Service, model: str) -> None:
    schema = {"properties": {"a": {"const": 1}}, "required": ["a", "zz"]}
    with pytest.raises(openai.BadRequestError, match="'zz'") as caught:
        _ask(service.openai(), model, schema, strict=True)
    assert caught.value.param == "tools[0].function.parameters"
    choice = _ask(service.openai(), model, schema, strict=False).choices[0]
    if choice.finish_reason == "tool_calls":  # "zz" may be longer than the answer
        (call,) = choice.message.tool_calls
        assert set(json.loads(call.function.arguments)) == {"a", "zz"}
