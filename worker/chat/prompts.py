"""From the messages of a job to token ids: template, tools, and nothing smuggled in."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shared.errors import InvalidRequest
from shared.messages import Job
from worker.chat.control_text import ControlText, map_texts
from worker.chat.conversation import Style, may_call, template_messages, template_tools
from worker.chat.format import find_format
from worker.chat.template import MARK, ChatTemplate
from worker.engines.protocol import Vocabulary, detokenize

_TAIL_TOKENS = 16
"""Enough for the mark that opens the reasoning and the blanks behind it."""


class ChatPrompts:
    """Renders and tokenizes chats for one model. Thread-safe."""

    def __init__(self, template: ChatTemplate, vocabulary: Vocabulary) -> None:
        self._template = template
        self._vocabulary = vocabulary
        self._control = ControlText(vocabulary)
        self.format = find_format(template)
        self.shown_tokens = frozenset(
            token
            for text, token in vocabulary.control_tokens.items()
            if text in self.format.shown_texts
        )

    def render(self, job: Job) -> str:
        """Render a chat, with marks for `tokenize` to cut at. Raises InvalidRequest."""
        style = self.format.style
        try:
            return self._render(job, style)
        except RecursionError as exc:
            reason = "The messages or tools are nested too deeply."
            raise InvalidRequest(reason, param="messages") from exc
        except InvalidRequest as refusal:
            other = _second_try(job, style)
            if other is None:
                raise
            try:
                return self._render(job, other)
            except InvalidRequest:
                raise refusal from None

    def tokenize(self, text: str) -> list[int]:
        """Raises EngineError."""
        return self._control.tokenize(text)

    def starts_in_reasoning(self, prompt: list[int]) -> bool:
        """Whether the model goes on in the middle of its reasoning."""
        return self.format.starts_in_reasoning(detokenize(self._vocabulary, prompt[-_TAIL_TOKENS:]))

    def _render(self, job: Job, style: Style) -> str:
        plain = _variables(job, style, self._control.broken)
        fenced = _variables(job, style, self._control.fenced)
        text = self._template.render(**plain)
        if fenced == plain:
            return text
        safe = self._template.render(**fenced)
        return text if self._control.ids(text) == self._control.ids(safe) else safe


def without_marks(text: str) -> str:
    """A rendered prompt as the model will read it."""
    return text.replace(MARK, "")


def _variables(job: Job, style: Style, guard: Callable[[str], str]) -> dict[str, Any]:
    arguments = {name: map_texts(guard, v) for name, v in job.template_arguments.items()}
    return {
        "messages": template_messages(job, style, guard),
        "tools": template_tools(job, style, guard),
        "arguments": arguments,
    }


def _second_try(job: Job, style: Style) -> Style | None:
    """What a template that has refused the messages might take. Some join the arguments of
    calls to text, some refuse system messages, and which ones do shows only then."""
    if style.is_generic:
        return replace(style, has_system=False) if may_call(job) else None
    has_calls = any(message.tool_calls for message in job.messages)
    return replace(style, has_text_arguments=True) if has_calls else None
