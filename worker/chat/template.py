"""Chat templates: the Jinja sources that come with models, run in a sandbox.

A template comes from the weights or from the operator, but its variables come from any client:
rendering must neither block the task thread for long nor take unlimited memory.
"""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.errors import InvalidRequest, SettingsError

MARK = "\ufdd0"
"""Marks where a rendered prompt is cut before tokenization: a Unicode noncharacter, which is
removed from clients' texts. See `worker.chat.injection_guard`."""

END = "\ufdd2"
"""Marks the end of a message that is to be continued: a noncharacter, which no template trims."""
_BYTE_ORDER_MARK = "\ufeff"
_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What a template can raise on messages that it does not support."""
_MAX_CHARS = 64 * 2**20
_MAX_S = 10.0
_OWN_VARIABLES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}
)
_ESCAPED_MARK = re.compile(r"(?<!\\)((?:\\\\)*)\\ufdd0")
"""MARK as JSON escapes it in ASCII. After an odd number of backslashes it is literal text."""


class TemplateRefusal(InvalidRequest):
    """The template does not accept the messages as they are."""


@dataclass(frozen=True, slots=True)
class UnusableTemplate:
    """A template that the model has and that cannot be used."""

    reason: str


class ChatTemplate:
    """A compiled chat template. Raises SettingsError for a source that does not compile."""

    def __init__(
        self,
        source: str,
        bos_text: str,
        eos_text: str,
        *,
        strip_bos: bool = True,
        for_tools: "ChatTemplate | None" = None,
    ) -> None:
        """`strip_bos`: remove the rendered begin token, because the tokenizer adds one.
        `for_tools`: the model's other template, for requests with tools."""
        source = source.removeprefix(_BYTE_ORDER_MARK)
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda text: datetime.now().strftime(text)
        self._special = {"bos_token": bos_text, "eos_token": eos_text}
        self._bos_text = bos_text if strip_bos else ""
        self._reserved = _OWN_VARIABLES | set(environment.globals)
        self.source = source
        self.for_tools = for_tools or self
        try:
            variables = meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except jinja2.TemplateError as exc:
            raise SettingsError(f"chat_template: {exc}") from exc
        self.takes_tools = "tools" in variables
        """Whether the template itself renders the list of tools."""

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        arguments: dict[str, Any] | None = None,
        *,
        continues: bool = False,
    ) -> str:
        """Render a conversation up to the begin of the assistant's turn, or up to END if
        `continues`. Raises TemplateRefusal, and InvalidRequest for bad arguments.
        `arguments`: further variables, which cannot replace the template's own."""
        for name in arguments or ():
            if name in self._reserved:
                reason = (
                    f"{name!r} cannot be an argument of the chat template: the service sets it."
                )
                raise InvalidRequest(reason, param="chat_template_kwargs")
        variables = {**(arguments or {}), **self._special, "documents": None, "tools": tools}
        try:
            text = _join(
                self._template.generate(
                    variables, messages=messages, add_generation_prompt=not continues
                )
            )
        except _ERRORS as exc:
            reason = f"The model's chat template refused the messages: {exc}"
            raise TemplateRefusal(reason, param="messages") from exc
        if continues:
            text, end, _ = text.rpartition(END)
            if not end:
                reason = "The model's chat template leaves out the message to continue."
                raise TemplateRefusal(reason, param="messages")
            text = text.replace(END, "")
        return text.removeprefix(self._bos_text) if self._bos_text else text


def _join(pieces: Iterator[str]) -> str:
    """Join rendered pieces. Raises TemplateError if they get too long or one ends too late."""
    started, length, taken = time.monotonic(), 0, []
    for piece in pieces:
        length += len(piece)
        taken.append(piece)
        if length > _MAX_CHARS or time.monotonic() - started > _MAX_S:
            raise jinja2.TemplateRuntimeError("the conversation is too long")
    return "".join(taken)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox limits `range`; this one also limits the products of texts and numbers."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        for value, count in ((left, right), (right, left)):
            if isinstance(value, str | list | tuple) and isinstance(count, int):
                is_long = len(value) * count > _MAX_CHARS
            else:
                is_long = operator == "**" and isinstance(count, int) and abs(count) > 64
            if is_long:
                raise jinja2.TemplateRuntimeError(f"the result of {operator} is too large")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """`{% generation %}`: some templates mark the assistant's part with it for training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter as templates on model hubs expect it: these arguments, no HTML escapes."""
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return _ESCAPED_MARK.sub(rf"\1{MARK}", text) if ensure_ascii else text


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
