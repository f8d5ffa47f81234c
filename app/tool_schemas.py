"""Tools that the model may call, and the form that its answer has to have."""

from typing import Annotated, Any, Literal

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
