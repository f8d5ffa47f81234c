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
from worker.engines.protocol import Engine, Sequence, detokenize

_TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError,
                    ArithmeticError, RecursionError)  # fmt: skip
"""What a template's own code can raise on messages that it was not made for."""


class ChatTemplate:
    """A compiled chat template. Raises SettingsError when the source is not one."""

    def __init__(
        self, source: str, bos_text: str, eos_text: str, *, strip_bos: bool = True
    ) -> None:
        """`strip_bos`: the tokenizer adds the begin token, so the rendered one goes."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda text: datetime.now().strftime(text)
        self._special = {"bos_token": bos_text, "eos_token": eos_text}
        self._bos_text = bos_text if strip_bos else ""
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as exc:
            raise SettingsError(f"chat_template: {exc}") from exc

    def render(self, messages: list[dict[str, Any]]) -> str:
        """Render a conversation up to where the assistant speaks. Raises InvalidRequest."""
        try:
            text = self._template.render(
                messages=messages,
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self._special,
            )
        except _TEMPLATE_ERRORS as exc:
            reason = f"The model's chat template refused the messages: {exc}"
            raise InvalidRequest(reason, param="messages") from exc
        return text.removeprefix(self._bos_text) if self._bos_text else text


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As the templates on model hubs expect it: with these arguments, and no HTML escapes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


class PromptBuilder:
    """Turns jobs into sequences for one engine."""

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate | None,
        stop: list[str],
        *,
        strip_leading_space: bool = False,
    ) -> None:
        """`stop` and `strip_leading_space` are the template's, for chat jobs."""
        self._engine = engine
        self._template = template
        self._template_stop = stop
        self._strip_leading_space = strip_leading_space

    def sequences(self, job: Job) -> list[Sequence]:
        """Build one sequence a choice. Raises InvalidRequest, ContextLengthExceeded."""
        self._check_kind(job)
        if job.kind is JobKind.EMBEDDING:
            return [self._input(job, index) for index in range(len(job.prompts))]
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
                        strip_leading_space=is_chat and self._strip_leading_space,
                    )
                )
        for sequence in sequences[:: job.num_choices]:
            self._engine.check(sequence)
        return sequences

    def tokens(self, job: Job) -> list[int]:
        """The token ids of a tokenize job. Raises InvalidRequest, ContextLengthExceeded."""
        (text,) = job.prompts
        assert isinstance(text, str), "a tokenize job has a text"
        self._check_bytes(text, "prompt")
        return self._engine.vocabulary.tokenize(
            text, add_special=job.add_special, parse_special=False
        )

    def token_texts(self, token_ids: list[int]) -> list[str]:
        return [detokenize(self._engine.vocabulary, [token]) for token in token_ids]

    def text(self, job: Job) -> str:
        """The text of a detokenize job. Raises InvalidRequest."""
        (token_ids,) = job.prompts
        assert isinstance(token_ids, list), "a detokenize job has token ids"
        self._check_token_ids(token_ids, "tokens")
        return detokenize(self._engine.vocabulary, token_ids)

    def _check_kind(self, job: Job) -> None:
        """Raises InvalidRequest for a job of the wrong kind of model."""
        if (job.kind is JobKind.EMBEDDING) is self._engine.embeds:
            return
        if self._engine.embeds:
            raise InvalidRequest(
                f"The model {job.model!r} embeds text and generates none. "
                "Use POST /v1/embeddings, or another model.",
                param="model",
            )
        raise InvalidRequest(
            f"The model {job.model!r} generates text and makes no embeddings. Use a model that "
            'embeds, or load this one, under another name, with task = "embed".',
            param="model",
        )

    def _input(self, job: Job, index: int) -> Sequence:
        """An input of an embedding job. It may fill the context: nothing comes after it."""
        prompt = self._tokens(job.prompts[index], "input")
        if len(prompt) > self._engine.context_length:
            raise self._too_long(str(len(prompt)), "input")
        return Sequence((job.id, index), prompt, max_tokens=0, sampling=job.sampling)

    def _chat_prompt(self, job: Job) -> list[int]:
        if self._template is None:
            raise InvalidRequest(
                f"The model {job.model!r} has no chat template. Use /v1/completions, "
                "or give it one with chat_template in its settings.",
                param="model",
            )
        messages = [{"role": m.role, "content": m.content} for m in job.messages]
        return self._tokenize(self._template.render(messages), "messages")

    def _tokens(self, prompt: str | list[int], param: str = "prompt") -> list[int]:
        if isinstance(prompt, str):
            return self._tokenize(prompt, param)
        self._check_token_ids(prompt, param)
        return prompt

    def _tokenize(self, text: str, param: str) -> list[int]:
        """Raises InvalidRequest for what gives no token, ContextLengthExceeded."""
        self._check_bytes(text, param)
        tokens = self._engine.vocabulary.tokenize(
            text, add_special=True, parse_special=param == "messages"
        )
        if not tokens:
            raise InvalidRequest(f"The {param} are empty for this model.", param=param)
        return tokens

    def _check_bytes(self, text: str, param: str) -> None:
        """Raises ContextLengthExceeded for what is too long by its bytes alone: tokenizing can
        take time that grows with their square."""
        fewest_tokens = (
            len(text.encode("utf-8", "replace")) // self._engine.vocabulary.max_token_bytes
        )
        if fewest_tokens >= self._engine.context_length:
            raise self._too_long(f"more than {fewest_tokens}", param)

    def _too_long(self, num_tokens: str, param: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"This model's maximum context length is {self._engine.context_length} tokens, "
            f"but the {param} came to {num_tokens}. Please shorten the input.",
            param=param,
        )

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
            raise self._too_long(str(len(prompt)), "messages" if job.messages else "prompt")
        return room if job.max_tokens is None else min(job.max_tokens, room)


def _sampling_of_choice(job: Job, index: int) -> Sampling:
    if job.sampling.seed is None or index == 0:
        return job.sampling
    return msgspec.structs.replace(job.sampling, seed=job.sampling.seed + index)
