"""Tools that the model may call, and the form that its answer has to have."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from shared.closed_schema import closed
from shared.errors import InvalidRequest
from shared.messages import Grammar, GrammarKind, Tool
from shared.messages import ToolChoice as Choice
from shared.settings import Settings

FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}\Z")]
_ANY_OBJECT = '{"type":"object"}'


class Function(Struct, frozen=True):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments."""
    strict: bool | None = None


class ToolParam(Struct, frozen=True):
    type: Literal["function"]
    function: Function

    def to_tool(self, where: str, settings: Settings) -> Tool:
        """Raises InvalidRequest."""
        function = self.function
        parameters = function.parameters or {}
        check_schema(parameters, f"{where}.function.parameters", settings)
        return Tool(function.name, function.description or "", parameters)


class NamedFunction(Struct, frozen=True):
    name: str


class NamedTool(Struct, frozen=True):
    function: NamedFunction
    type: Literal["function"] = "function"


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def chosen_tool(choice: ToolChoice | None, tools: list[Tool]) -> tuple[Choice, str | None]:
    """How the model is to choose, and the tool that it has to call. Raises InvalidRequest."""
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if all(tool.name != name for tool in tools):
            raise InvalidRequest(
                f"tool_choice names {name[:64]!r}, which is none of the tools.",
                param="tool_choice",
            )
        return Choice.REQUIRED, name
    if choice == "required" and not tools:
        raise InvalidRequest("tool_choice is required, but there are no tools.", param="tools")
    return Choice(choice or "auto"), None


class JsonSchemaFormat(Struct, frozen=True):
    name: FunctionName
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    def grammar(self, settings: Settings) -> Grammar | None:
        """Raises InvalidRequest."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar(GrammarKind.JSON_SCHEMA, _ANY_OBJECT)
        if self.json_schema is None or self.json_schema.schema is None:
            raise InvalidRequest(
                "Missing required parameter: response_format.json_schema.schema.",
                param="response_format.json_schema.schema",
            )
        where, schema = "response_format.json_schema.schema", self.json_schema.schema
        return schema_grammar(schema, where, settings, is_strict=bool(self.json_schema.strict))


def schema_grammar(
    schema: dict[str, Any], where: str, settings: Settings, *, is_strict: bool
) -> Grammar:
    """Raises InvalidRequest. A strict one is refused later where it says what cannot be
    enforced; of others that is left out."""
    check_schema(schema, where, settings)
    schema = closed(schema)
    if not is_strict:
        schema = {**schema, "x-guidance": {"lenient": True}}
    return Grammar(GrammarKind.JSON_SCHEMA, msgspec.json.encode(schema).decode(), where)


def choice_grammar(choices: list[str]) -> Grammar:
    """One of several texts, and nothing else."""
    alternatives = " | ".join(msgspec.json.encode(choice).decode() for choice in choices)
    return Grammar(GrammarKind.LARK, f"start: {alternatives}", "guided_choice")


def check_schema(schema: Any, where: str, settings: Settings) -> None:
    """Whether a JSON schema is small enough to be compiled. Raises InvalidRequest."""
    size = len(msgspec.json.encode(schema))
    if size > settings.max_schema_bytes:
        raise InvalidRequest(
            f"{where} has {size} bytes; at most {settings.max_schema_bytes} are taken.",
            param=where,
        )
    if _depth(schema, settings.max_schema_depth) > settings.max_schema_depth:
        raise InvalidRequest(
            f"{where} is nested more than {settings.max_schema_depth} levels deep.", param=where
        )


def _depth(value: Any, limit: int) -> int:
    """Levels of nesting, counted up to one beyond the limit."""
    level, depth = [value], 0
    while level and depth <= limit:
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += 1
    return depth
