"""Tools that the model may call, and the form that its answer has to have."""

from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta, Struct

from app.grammars import check_schema, schema_grammar
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
        return Tool(
            function.name,
            function.description or "",
            parameters,
            is_strict=bool(function.strict),
        )


class NamedFunction(Struct, frozen=True):
    name: str


class NamedTool(Struct, frozen=True, tag_field="type", tag="function"):
    """This tool has to be called."""

    function: NamedFunction


class Allowed(Struct, frozen=True):
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class AllowedTools(Struct, frozen=True, tag_field="type", tag="allowed_tools"):
    """Only these of the tools count."""

    allowed_tools: Allowed


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedTools


class ToolUse(NamedTuple):
    tools: list[Tool]
    choice: Choice = Choice.AUTO
    name: str | None = None
    """With `Choice.REQUIRED`: it has to be this one."""


def tool_use(choice: ToolChoice | None, tools: list[Tool]) -> ToolUse:
    """Which tools the model may call, and whether it has to. Raises InvalidRequest."""
    if isinstance(choice, NamedTool):
        _named(choice, tools)
        return ToolUse(tools, Choice.REQUIRED, choice.function.name)
    if isinstance(choice, AllowedTools):
        allowed = choice.allowed_tools
        return tool_use(allowed.mode, [_named(named, tools) for named in allowed.tools])
    if choice == "required" and not tools:
        raise InvalidRequest("tool_choice is required, but there are no tools.", param="tools")
    if choice == "none":
        return ToolUse([], Choice.NONE)
    return ToolUse(tools, Choice(choice or "auto"))


def _named(named: NamedTool, tools: list[Tool]) -> Tool:
    for tool in tools:
        if tool.name == named.function.name:
            return tool
    raise InvalidRequest(
        f"tool_choice names {named.function.name[:64]!r}, which is none of the tools.",
        param="tool_choice",
    )


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
