"""Chat templates: the Jinja sources that models bring along, run in a sandbox.

A template comes with the weights or from the operator, but what it is given comes from anyone:
nothing that it does with that may take the task thread for long, or memory without limit.
"""

import json
import re
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.errors import InvalidRequest, SettingsError

MARK = "\ufdd0"
"""A noncharacter, which no text has: where a rendered prompt is cut before it is tokenized.
See `worker.chat.control_text`."""

_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError,
           ArithmeticError, RecursionError)  # fmt: skip
"""What a template's own code can raise on messages that it was not made for."""
_MAX_CHARS = 64 * 2**20
_MAX_S = 10.0
_OWN_VARIABLES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}
)
_ESCAPED_MARK = re.compile(r"(?<!\\)((?:\\\\)*)\\ufdd0")
"""As JSON writes it in ASCII. After an odd number of backslashes it is someone's text."""


class ChatTemplate:
    """A compiled chat template. Raises SettingsError when the source is not one."""

    def __init__(
        self, source: str, bos_text: str, eos_text: str, *, strip_bos: bool = True
    ) -> None:
        """`strip_bos`: the tokenizer adds the begin token, so the rendered one goes."""
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
        try:
            variables = meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except jinja2.TemplateError as exc:
            raise SettingsError(f"chat_template: {exc}") from exc
        self.takes_tools = "tools" in variables
        """It says itself which functions there are."""

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        arguments: dict[str, Any] | None = None,
    ) -> str:
        """Render a conversation up to where the assistant speaks. Raises InvalidRequest.

        `arguments`: further variables, which cannot replace the template's own."""
        for name in arguments or ():
            if name in self._reserved:
                raise InvalidRequest(
                    f"{name!r} is no argument of the chat template: the service sets it.",
                    param="chat_template_kwargs",
                )
        variables = {**(arguments or {}), **self._special, "documents": None, "tools": tools}
        try:
            text = _join(
                self._template.generate(variables, messages=messages, add_generation_prompt=True)
            )
        except _ERRORS as exc:
            reason = f"The model's chat template refused the messages: {exc}"
            raise InvalidRequest(reason, param="messages") from exc
        return text.removeprefix(self._bos_text) if self._bos_text else text


def _join(pieces: Iterator[str]) -> str:
    """Raises TemplateError for what is too long or takes too long."""
    started, length, taken = time.monotonic(), 0, []
    for piece in pieces:
        length += len(piece)
        taken.append(piece)
        if length > _MAX_CHARS or time.monotonic() - started > _MAX_S:
            raise jinja2.TemplateRuntimeError("the conversation is too long for it")
    return "".join(taken)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox caps `range`; here texts and lists cannot be multiplied at will either."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        for value, count in ((left, right), (right, left)):
            if isinstance(value, str | list | tuple) and isinstance(count, int):
                is_long = len(value) * count > _MAX_CHARS
            else:
                is_long = operator == "**" and isinstance(count, int) and abs(count) > 64
            if is_long:
                raise jinja2.TemplateRuntimeError(f"{operator} gives too much")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """`{% generation %}`, with which some templates mark the assistant's part for training."""

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
    """As the templates on model hubs expect it: with these arguments, and no HTML escapes."""
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return _ESCAPED_MARK.sub(rf"\1{MARK}", text) if ensure_ascii else text


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
