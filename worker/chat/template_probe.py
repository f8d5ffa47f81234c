"""What a chat template wants to be given: probes are rendered in one form and in another, and the
form in which their text appears is the template's.

A template that shows the text of a probe in the usual form, a string, always gets that form.
"""

from dataclasses import replace
from typing import Any

from shared.errors import InvalidRequest
from worker.chat.conversation import CALL, ArgumentsForm, TemplateStyle, in_style
from worker.chat.format import find_format
from worker.chat.template import ChatTemplate

_PROBE = "zq7probe"
_ID = "zq7probe1"
"""Nine letters and digits, for templates that want that."""
_SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "description": "a"}},
    "required": ["a"],
}


def shows_text(template: ChatTemplate, *, with_tools: bool) -> bool | None:
    """Whether a template shows what users write. None: it refuses the probes, perhaps because it
    wants further variables, which come with a request."""
    style = find_format(template).style
    probe = _TemplateProbe(template, style, with_tools and not style.is_generic)
    texts = [probe.render("user", probe.with_form("user", parts)) for parts in (False, True)]
    is_refused = all(text is None for text in texts)
    return None if is_refused else any(map(_is_shown, texts))


def find_style(template: ChatTemplate, style: TemplateStyle, *, with_tools: bool) -> TemplateStyle:
    """The style with all that probes show. `with_tools`: for requests with tools."""
    probe = _TemplateProbe(template, style, with_tools and not style.is_generic)
    for kind in ("user", "system", "assistant"):
        probe.find_content_form(kind)
    if not style.is_generic:
        probe.find_arguments_form()
        probe.find_content_form(CALL)
        probe.find_content_form("tool")
        probe.find_thoughts()
        probe.find_properties()
    return probe.style


class _TemplateProbe:
    """Renders probes. `style` is what they have shown so far."""

    def __init__(self, template: ChatTemplate, style: TemplateStyle, with_tools: bool) -> None:
        self._template = template
        self._with_tools = with_tools
        self.style = style

    def find_content_form(self, kind: str) -> None:
        other = self.with_form(kind, has_parts=True)
        text, other_text = self.render(kind, self.style), None
        if not _is_shown(text):
            other_text = self.render(kind, other)
        # Shown by neither: the content is left out, and the form must only be accepted.
        if _is_shown(other_text) or (text is None and other_text is not None):
            self.style = other

    def find_arguments_form(self) -> None:
        null = replace(self.style, has_null_content=True)
        for style in (self.style, self.with_form(CALL, has_parts=True), null):
            shown = [
                form
                for form, given in (
                    (ArgumentsForm.OBJECT, {"a": _PROBE}),
                    (ArgumentsForm.TEXT, f'{{"a": "{_PROBE}"}}'),
                )
                if _is_shown(self._render_calls(_calls(given), style))
            ]
            if shown:
                arguments = shown[0] if len(shown) == 1 else ArgumentsForm.GIVEN
                self.style = replace(style, arguments=arguments)
                return

    def find_thoughts(self) -> None:
        calls = _calls(self._arguments) | {self.style.reasoning_key: "r"}
        both = self._render_calls(calls | {"content": "c"}, self.style)
        if both is None and self._render_calls(calls, self.style) is not None:
            self.style = replace(self.style, has_one_thought=True)

    def find_properties(self) -> None:
        is_refused = self._render([_user()], self.style, {"type": "object"}) is None
        if is_refused and self._render([_user()], self.style) is not None:
            self.style = replace(self.style, needs_properties=True)

    def with_form(self, kind: str, has_parts: bool) -> TemplateStyle:
        return replace(self.style, parts=self.style.parts | ({kind} if has_parts else set()))

    def render(self, kind: str, style: TemplateStyle) -> str | None:
        """A conversation with the probe in a message of a kind. None: refused."""
        message = {"role": kind, "content": _PROBE}
        calls = _calls(self._arguments)
        if kind == CALL:
            return self._render_calls(calls | {"content": _PROBE}, style)
        conversations = {
            "system": [message, _user()],
            "user": [message],
            "assistant": [_user(), message, _user()],
            "tool": [_user(), calls, message | {"tool_call_id": _ID}],
        }
        return self._render(conversations[kind], style)

    def _render_calls(self, calls: dict[str, Any], style: TemplateStyle) -> str | None:
        """Some templates want the answer to a call. It comes second: in which form is not known."""
        answer = {"role": "tool", "content": "a", "tool_call_id": _ID}
        text = self._render([_user(), calls], style)
        return self._render([_user(), calls, answer], style) if text is None else text

    @property
    def _arguments(self) -> Any:
        return '{"a": "b"}' if self.style.arguments is ArgumentsForm.TEXT else {"a": "b"}

    def _render(
        self, messages: list[Any], style: TemplateStyle, schema: dict[str, Any] = _SCHEMA
    ) -> str | None:
        function = {"name": "f", "description": "f", "parameters": schema}
        tools = [{"type": "function", "function": function}] if self._with_tools else None
        try:
            return self._template.render(in_style(messages, style), tools)
        except InvalidRequest:
            return None


def _is_shown(text: str | None) -> bool:
    # Templates may change the case.
    return text is not None and _PROBE in text.casefold()


def _user() -> dict[str, Any]:
    return {"role": "user", "content": "q"}


def _calls(arguments: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": _ID, "type": "function", "function": function}],
    }
