"""Tools that the model may call, and the format of its answer."""

from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta, Struct

from app.schemas.grammars import check_schema, schema_grammar
from shared.errors import InvalidRequest
from shared.settings.fields import Settings
from shared.wire.job import Grammar, GrammarKind, Tool
from shared.wire.job import ToolChoice as Choice

FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}\Z")]
_ANY_OBJECT = '{"type":"object"}'
_TYPING = {"type", "$ref", "allOf", "anyOf", "oneOf", "enum", "const"}
"""Keywords that say of which type a value is."""


class Function(Struct, frozen=True, forbid_unknown_fields=True):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments."""
    strict: bool | None = None


class ToolParam(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: Function

    def to_tool(self, where: str, settings: Settings) -> Tool:
        """Raises InvalidRequest."""
        function = self.function
        parameters, is_strict = function.parameters or {}, bool(function.strict)
        where = f"{where}.function.parameters"
        check_schema(parameters, where, settings, is_strict=is_strict)
        return Tool(function.name, function.description or "", parameters, is_strict)


class NamedFunction(Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class NamedTool(Struct, frozen=True, tag_field="type", tag="function", forbid_unknown_fields=True):
    """The model has to call this tool."""

    function: NamedFunction


class Allowed(Struct, frozen=True, forbid_unknown_fields=True):
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class AllowedTools(
    Struct, frozen=True, tag_field="type", tag="allowed_tools", forbid_unknown_fields=True
):
    """The model may call only these of the tools."""

    allowed_tools: Allowed


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedTools


class ToolUse(NamedTuple):
    tools: list[Tool]
    choice: Choice = Choice.AUTO
    name: str | None = None
    """The tool that has to be called; only with `Choice.REQUIRED`."""


def tool_use(choice: ToolChoice | None, tools: list[Tool]) -> ToolUse:
    """Which tools the model may call, and whether it has to. Raises InvalidRequest."""
    if isinstance(choice, NamedTool):
        _named(choice, tools)
        return ToolUse(tools, Choice.REQUIRED, choice.function.name)
    if isinstance(choice, AllowedTools):
        allowed = choice.allowed_tools
        return tool_use(allowed.mode, [_named(named, tools) for named in allowed.tools])
    if choice == "required" and not tools:
        raise InvalidRequest(
            "tool_choice is required, but the request has no tools.", param="tools"
        )
    if choice == "none":
        return ToolUse([], Choice.NONE)
    return ToolUse(tools, Choice(choice or "auto"))


def _named(named: NamedTool, tools: list[Tool]) -> Tool:
    for tool in tools:
        if tool.name == named.function.name:
            return tool
    raise InvalidRequest(
        f"tool_choice names {named.function.name[:64]!r}, which is not one of the tools.",
        param="tool_choice",
    )


class JsonSchemaFormat(Struct, frozen=True, forbid_unknown_fields=True):
    name: FunctionName
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema: dict[str, Any] | None = None
    """Extension: the schema without a name around it, as llama.cpp, Together and Fireworks take it
    with `json_object` or `json_schema`."""

    def grammar(self, settings: Settings) -> Grammar | None:
        """Raises InvalidRequest."""
        self._check()
        if self.type == "text":
            return None
        if self.schema is not None:
            where, is_typed = "response_format.schema", not _TYPING.isdisjoint(self.schema)
            is_object = self.type == "json_object" and not is_typed
            schema = {"type": "object", **self.schema} if is_object else self.schema
            return schema_grammar(schema, where, settings, is_strict=False)
        if self.type == "json_object":
            return Grammar(GrammarKind.JSON_SCHEMA, _ANY_OBJECT)
        where = "response_format.json_schema.schema"
        if self.json_schema is None or self.json_schema.schema is None:
            raise InvalidRequest(f"Missing required parameter: {where}.", param=where)
        schema, is_strict = self.json_schema.schema, bool(self.json_schema.strict)
        return schema_grammar(schema, where, settings, is_strict=is_strict)

    def _check(self) -> None:
        """Raises InvalidRequest for a schema that would be without effect."""
        name, beside = "", f"the type {self.type!r}"
        if self.json_schema is not None and self.type != "json_schema":
            name = "json_schema"
        elif self.schema is not None and self.json_schema is not None:
            name, beside = "schema", "json_schema"
        elif self.schema is not None and self.type == "text":
            name = "schema"
        if name:
            param = f"response_format.{name}"
            raise InvalidRequest(f"{param} is without effect beside {beside}.", param=param)
