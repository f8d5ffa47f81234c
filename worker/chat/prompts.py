"""Turns the messages of a job into token ids: template, tools, protection against injection."""

import time
from collections.abc import Callable
from typing import Any

from shared.errors import InvalidRequest
from shared.wire.job import Job
from worker.chat.arrangements import Messages, arrangements
from worker.chat.conversation import (
    TemplateStyle,
    in_style,
    may_call,
    template_messages,
    template_tools,
)
from worker.chat.format import ChatFormat, find_format
from worker.chat.injection_guard import InjectionGuard, map_texts
from worker.chat.template import MARK, ChatTemplate, TemplateRefusal
from worker.chat.template_probe import find_style
from worker.text.completion import detokenize
from worker.vocabulary import Vocabulary

_MAX_TRIES_S = 10.0
"""After this time a refused conversation is not rearranged again."""
_TAIL_TOKENS = 16
"""Enough for the begin mark of reasoning and the blanks after it."""
_Variables = dict[str, Any]
"""The arguments of `ChatTemplate.render`."""


class ChatPrompts:
    """Renders and tokenizes chats for one model. Thread-safe."""

    def __init__(self, template: ChatTemplate, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._guard = InjectionGuard(vocabulary)
        self._renderings = [
            _Rendering(chosen, with_tools)
            for chosen, with_tools in ((template, False), (template.for_tools, True))
        ]

    def format(self, job: Job) -> ChatFormat:
        return self._rendering(job).format

    def shown_tokens(self, job: Job) -> frozenset[int]:
        """Control tokens that have to appear in the model's text."""
        texts = self.format(job).shown_texts
        control_tokens = self._vocabulary.control_tokens
        return frozenset(token for text, token in control_tokens.items() if text in texts)

    def render(self, job: Job) -> str:
        """Render a chat with marks at which `tokenize` cuts. Raises InvalidRequest."""
        rendering, started = self._rendering(job), time.monotonic()
        refusal: TemplateRefusal | None = None
        tried: list[Any] = []
        try:
            plain = _variables(job, rendering.style, self._guard.split_marks)
            fenced = _variables(job, rendering.style, self._guard.fence_marks)
            for arrange in arrangements():
                messages = arrange(plain["messages"])
                if messages in tried:
                    continue
                tried.append(messages)
                try:
                    return self._render(rendering, plain, fenced, arrange)
                except TemplateRefusal as exc:
                    refusal = refusal or exc
                    if time.monotonic() - started > _MAX_TRIES_S:
                        break
        except RecursionError as exc:
            reason = "The messages or tools are nested too deeply."
            raise InvalidRequest(reason, param="messages") from exc
        assert refusal is not None, "the first arrangement is always tried"
        raise refusal

    def tokenize(self, text: str) -> list[int]:
        """Turn a rendered chat into token ids. Raises EngineError."""
        return self._guard.tokenize(text)

    def starts_in_reasoning(self, job: Job, prompt: list[int]) -> bool:
        """Whether the prompt has begun the model's reasoning."""
        tail = detokenize(self._vocabulary, prompt[-_TAIL_TOKENS:])
        return self.format(job).starts_in_reasoning(tail)

    def _rendering(self, job: Job) -> "_Rendering":
        return self._renderings[may_call(job)]

    def _render(
        self,
        rendering: "_Rendering",
        plain: _Variables,
        fenced: _Variables,
        arrange: Callable[[Messages], Messages],
    ) -> str:
        text = rendering.render(plain, arrange)
        if fenced == plain:
            return text
        # Different control tokens mean that the template formed one from clients' texts.
        safe = rendering.render(fenced, arrange)
        return text if self._guard.ids(text) == self._guard.ids(safe) else safe


class _Rendering:
    """How requests are rendered, with tools or without."""

    def __init__(self, template: ChatTemplate, with_tools: bool) -> None:
        self._template = template
        self.format = find_format(template)
        self.style = find_style(template, self.format.style, with_tools=with_tools)

    def render(self, variables: _Variables, arrange: Callable[[Messages], Messages]) -> str:
        messages = in_style(arrange(variables["messages"]), self.style)
        return self._template.render(**(variables | {"messages": messages}))


def without_marks(text: str) -> str:
    """A rendered prompt as the model reads it."""
    return text.replace(MARK, "")


def _variables(job: Job, style: TemplateStyle, guard: Callable[[str], str]) -> _Variables:
    arguments = {name: map_texts(guard, v) for name, v in job.template_arguments.items()}
    return {
        "messages": template_messages(job, style, guard),
        "tools": template_tools(job, style, guard),
        "arguments": arguments,
        "continues": job.continues,
    }
