"""From a job to token ids: chat templates, tokenizing, length checks. Runs in task threads."""

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import jinja2
import msgspec
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.errors import ContextLengthExceeded, InvalidRequest, SettingsError
from shared.messages import Job, JobKind, Sampling
from worker.engines.protocol import Engine, Sequence


class ChatTemplate:
    """A compiled chat template. Raises SettingsError when the source is not one."""

    def __init__(self, source: str, bos_text: str, eos_text: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda text: datetime.now().strftime(text)
        self._special = {"bos_token": bos_text, "eos_token": eos_text}
        self._bos_text = bos_text
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as exc:
            raise SettingsError(f"chat_template: {exc}") from exc

    def render(self, messages: list[dict[str, Any]]) -> str:
        """Render a conversation up to where the assistant speaks. Raises InvalidRequest."""
        try:
            text = self._template.render(
                messages=messages, add_generation_prompt=True, **self._special
            )
        except jinja2.TemplateError as exc:
            reason = f"The model's chat template refused the messages: {exc}"
            raise InvalidRequest(reason, param="messages") from exc
        # The tokenizer adds it: twice is once too often.
        return text.removeprefix(self._bos_text) if self._bos_text else text


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


class PromptBuilder:
    """Turns jobs into sequences for one engine."""

    def __init__(self, engine: Engine, template: ChatTemplate | None, stop: list[str]) -> None:
        self._engine = engine
        self._template = template
        self._template_stop = stop

    def sequences(self, job: Job) -> list[Sequence]:
        """Build one sequence a choice. Raises InvalidRequest, ContextLengthExceeded."""
        is_chat = job.kind is JobKind.CHAT
        self._check_token_ids(job.sampling.logit_bias, "logit_bias")
        prompts = [self._chat_prompt(job)] if is_chat else [self._tokens(p) for p in job.prompts]
        stop = list(job.stop) + (self._template_stop if is_chat else [])
        sequences: list[Sequence] = []
        for prompt in prompts:
            max_tokens = self._max_tokens(prompt, job)
            for _ in range(job.num_choices):
                index = len(sequences)
                sequences.append(
                    Sequence(
                        key=(job.id, index),
                        prompt=prompt,
                        max_tokens=max_tokens,
                        sampling=_sampling_of_choice(job, index),
                        stop=stop,
                        strip_leading_space=is_chat,
                    )
                )
        return sequences

    def _chat_prompt(self, job: Job) -> list[int]:
        if self._template is None:
            raise InvalidRequest(
                f"The model {job.model!r} has no chat template. Use /v1/completions, "
                "or give it one with chat_template in its settings.",
                param="model",
            )
        messages = [{"role": m.role, "content": m.content} for m in job.messages]
        return self._engine.tokenize(
            self._template.render(messages), add_special=True, parse_special=True
        )

    def _tokens(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            tokens = self._engine.tokenize(prompt, add_special=True, parse_special=False)
            if not tokens:
                raise InvalidRequest("The prompt is empty for this model.", param="prompt")
            return tokens
        self._check_token_ids(prompt, "prompt")
        return prompt

    def _check_token_ids(self, token_ids: Iterable[int], param: str) -> None:
        """An id outside of the vocabulary would make the engine read beyond its tables."""
        for token in token_ids:
            if not 0 <= token < self._engine.vocab_size:
                raise InvalidRequest(
                    f"Token id {token} is not in the vocabulary of "
                    f"{self._engine.vocab_size} tokens.",
                    param=param,
                )

    def _max_tokens(self, prompt: list[int], job: Job) -> int:
        room = self._engine.context_length - len(prompt)
        if room < 1:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self._engine.context_length} tokens, "
                f"but the {'messages' if job.messages else 'prompt'} came to {len(prompt)}. "
                "Please shorten the input.",
                param="messages" if job.messages else "prompt",
            )
        return room if job.max_tokens is None else min(job.max_tokens, room)


def _sampling_of_choice(job: Job, index: int) -> Sampling:
    if job.sampling.seed is None or index == 0:
        return job.sampling
    return msgspec.structs.replace(job.sampling, seed=job.sampling.seed + index)
