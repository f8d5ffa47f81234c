"""From a job to sequences: prompts, tokenizing, length checks. Runs in task threads."""

from collections.abc import Iterable
from functools import partial

import msgspec

from shared.errors import ContextLengthExceeded, InvalidRequest
from shared.wire.job import Grammar, GrammarKind, Job, JobKind, Sampling
from shared.wire.records import Capability
from worker.chat.prompts import ChatPrompts, without_marks
from worker.chat.template import ChatTemplate, UnusableTemplate
from worker.engines.base import Engine
from worker.sequence import Sequence
from worker.text.completion import detokenize


class PromptBuilder:
    """Turns jobs into sequences for one engine."""

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate | UnusableTemplate | None,
        stop: list[str],
        *,
        strip_leading_space: bool = False,
        max_prompt_logprobs: int = 200_000,
        max_prompt_tokens: int = 0,
        max_completion_tokens: int = 0,
    ) -> None:
        """`stop` and `strip_leading_space` are the template's, for chat jobs. 0 = no limit but
        the context."""
        self._engine = engine
        self._chat: ChatPrompts | None = None
        self.template_source = template.source if isinstance(template, ChatTemplate) else None
        self.chat_error = ""
        """Why the model's chat template cannot be used."""
        if isinstance(template, UnusableTemplate):
            self.chat_error = template.reason
        elif template is not None:
            self._chat = ChatPrompts(template, engine.vocabulary)
        self._template_stop = stop
        self._strip_leading_space = strip_leading_space
        self._max_prompt_logprobs = max_prompt_logprobs
        self._max_prompt_tokens = max_prompt_tokens
        self._max_completion_tokens = max_completion_tokens

    @property
    def capabilities(self) -> list[Capability]:
        """What this model can be asked for."""
        if self._engine.embeds:
            return [Capability.EMBEDDING]
        found = [Capability.COMPLETION]
        if self._chat is not None:
            found.insert(0, Capability.CHAT)
        if self._engine.vocabulary.fill_in_middle is not None:
            found.append(Capability.INFILL)
        return found

    def sequences(self, job: Job) -> list[Sequence]:
        """Build one sequence per choice. Raises InvalidRequest, ContextLengthExceeded."""
        self._check_kind(job)
        if job.kind is JobKind.EMBEDDING:
            return [self._input(job, index) for index in range(len(job.prompts))]
        is_chat = job.kind is JobKind.CHAT
        self._check_token_ids(job.sampling.logit_bias, "logit_bias")
        prompts = [self._chat_prompt(job)] if is_chat else self._completion_prompts(job)
        self._check_prompt_logprobs(job, prompts)
        stop = list(job.stop) + (self._template_stop if is_chat else [])
        grammar = self._chat_grammar(job, prompts[0]) if is_chat else job.grammar
        chat = self._chat if is_chat else None
        output = chat.format(job) if chat else None
        starts_in_reasoning = chat is not None and chat.starts_in_reasoning(job, prompts[0])
        shown_tokens = chat.shown_tokens(job) if chat else frozenset[int]()
        sequences: list[Sequence] = []
        for prompt in prompts:
            max_tokens = self._max_tokens(prompt, job)
            for i in range(job.num_choices):
                index = len(sequences)
                sequences.append(
                    Sequence(
                        key=(job.id, index),
                        prompt=prompt,
                        max_tokens=max_tokens,
                        sampling=_sampling_of_choice(job, index),
                        stop=stop,
                        new_parser=partial(output.parser, job, index, starts_in_reasoning)
                        if output
                        else None,
                        strip_leading_space=is_chat and self._strips(job),
                        logprobs=job.logprobs,
                        grammar=grammar,
                        min_tokens=job.min_tokens,
                        ignore_eos=job.ignore_eos,
                        shown_tokens=shown_tokens,
                        # They are the same for all choices of a prompt.
                        prompt_logprobs=job.prompt_logprobs and i == 0,
                    )
                )
        for first in range(0, len(sequences), job.num_choices):
            self._engine.check(sequences[first])
            for choice in sequences[first : first + job.num_choices]:
                choice.compiled = sequences[first].compiled
        return sequences

    def tokens(self, job: Job) -> list[int]:
        """The token ids of a tokenize job. Raises InvalidRequest, ContextLengthExceeded."""
        if job.messages:
            return self._chat_prompt(job)
        (text,) = job.prompts
        assert isinstance(text, str), "a tokenize job has a text, or messages"
        self._check_bytes(text, "prompt")
        if not job.add_special and text in self._engine.vocabulary.control_tokens:
            # A client asks for the id of a name in `tokenizer_info`.
            return [self._engine.vocabulary.control_tokens[text]]
        return self._engine.vocabulary.tokenize(
            text, add_special=job.add_special, parse_special=False
        )

    def token_texts(self, token_ids: list[int]) -> list[str]:
        name = self._engine.vocabulary.name
        return [name(token).decode("utf-8", "replace") for token in token_ids]

    def text(self, job: Job) -> str:
        """The text of a detokenize job. Raises InvalidRequest."""
        (token_ids,) = job.prompts
        assert isinstance(token_ids, list), "a detokenize job has token ids"
        if len(token_ids) > self._engine.context_length:
            raise self._too_long(str(len(token_ids)), "tokens")
        self._check_token_ids(token_ids, "tokens")
        return detokenize(self._engine.vocabulary, token_ids)

    def _strips(self, job: Job) -> bool:
        """A form that the client gives is kept as it is, and so is a message that goes on. JSON may
        have blanks in front."""
        is_exact = job.grammar is not None and job.grammar.kind is not GrammarKind.JSON_SCHEMA
        return self._strip_leading_space and not is_exact and not job.continues

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
        self._check_allowed(len(prompt), "input")
        return Sequence((job.id, index), prompt, max_tokens=0, sampling=job.sampling)

    def echoes(self, job: Job) -> list[str]:
        """The text of each prompt, for a job that wants it back."""
        vocabulary = self._engine.vocabulary
        return [p if isinstance(p, str) else detokenize(vocabulary, p) for p in job.prompts]

    def _completion_prompts(self, job: Job) -> list[list[int]]:
        if job.suffix is None:
            return [self._tokens(prompt) for prompt in job.prompts]
        marks = self._engine.vocabulary.fill_in_middle
        if marks is None:
            raise InvalidRequest(
                f"The model {job.model!r} was not trained to fill gaps.", param="suffix"
            )
        behind = self._plain(job.suffix, "suffix")
        begin = self._engine.vocabulary.tokenize("", add_special=True, parse_special=False)
        return [
            [*begin, marks.prefix, *before, marks.suffix, *behind, marks.middle]
            for before in (
                self._plain(p, "prompt") if isinstance(p, str) else self._tokens(p)
                for p in job.prompts
            )
        ]

    def _plain(self, text: str, param: str) -> list[int]:
        """The tokens of a text alone; none for an empty one."""
        self._check_bytes(text, param)
        return self._engine.vocabulary.tokenize(text, add_special=False, parse_special=False)

    def _chat_prompt(self, job: Job) -> list[int]:
        if self._chat is None:
            lack = (
                f"no usable chat template ({self.chat_error})"
                if self.chat_error
                else "no chat template"
            )
            raise InvalidRequest(
                f"The model {job.model!r} has {lack}. Use /v1/completions, "
                "or give it one with chat_template in its settings.",
                param="model",
            )
        # Before the messages are rendered: that takes time, too. What a template leaves out of
        # them counts.
        self._check_length(sum(len(message.content) for message in job.messages), "messages")
        text = self._chat.render(job)
        self._check_bytes(without_marks(text), "messages")
        return self._not_empty(self._chat.tokenize(text), "messages")

    def _chat_grammar(self, job: Job, prompt: list[int]) -> Grammar | None:
        assert self._chat is not None, "it has rendered the prompt"
        starts_in_reasoning = self._chat.starts_in_reasoning(job, prompt)
        control_tokens = self._engine.vocabulary.control_tokens
        return self._chat.format(job).grammar(job, starts_in_reasoning, control_tokens)

    def _tokens(self, prompt: str | list[int], param: str = "prompt") -> list[int]:
        """Raises InvalidRequest, ContextLengthExceeded."""
        if isinstance(prompt, list):
            self._check_token_ids(prompt, param)
            return prompt
        self._check_bytes(prompt, param)
        tokens = self._engine.vocabulary.tokenize(prompt, add_special=True, parse_special=False)
        return self._not_empty(tokens, param)

    def _check_bytes(self, text: str, param: str) -> None:
        """Raises ContextLengthExceeded for what is too long by its bytes alone: tokenizing can
        take time that grows with their square."""
        self._check_length(len(text.encode("utf-8", "replace")), param)

    def _check_length(self, num_bytes: int, param: str) -> None:
        """Raises ContextLengthExceeded for texts of so many bytes, or more."""
        fewest_tokens = num_bytes // self._engine.vocabulary.max_token_bytes
        if fewest_tokens >= self._engine.context_length:
            raise self._too_long(f"more than {fewest_tokens}", param)

    def _not_empty(self, tokens: list[int], param: str) -> list[int]:
        if not tokens:
            raise InvalidRequest(f"The {param} are empty for this model.", param=param)
        return tokens

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

    def _check_prompt_logprobs(self, job: Job, prompts: list[list[int]]) -> None:
        """Raises InvalidRequest for more of them than an answer can carry: each choice of a
        prompt repeats its prompt's."""
        if not job.prompt_logprobs:
            return
        num_tokens = job.num_choices * sum(map(len, prompts))
        num_each = 1 + (job.logprobs or 0)
        if num_tokens * num_each > self._max_prompt_logprobs:
            raise InvalidRequest(
                f"echo with logprobs would give {num_each} log probabilities for each of "
                f"{num_tokens} prompt tokens, all choices together; at most "
                f"{self._max_prompt_logprobs} are given. Send fewer prompts, choices or "
                "logprobs at a time.",
                param="logprobs",
            )

    def _max_tokens(self, prompt: list[int], job: Job) -> int:
        """Raises ContextLengthExceeded."""
        param = "messages" if job.messages else "prompt"
        room = self._engine.context_length - len(prompt)
        if room < (0 if job.max_tokens == 0 else 1):
            raise self._too_long(str(len(prompt)), param)
        self._check_allowed(len(prompt), param)
        if job.max_tokens is not None:
            return min(job.max_tokens, room)
        return min(self._max_completion_tokens or room, room)

    def _check_allowed(self, num_tokens: int, param: str) -> None:
        """Raises ContextLengthExceeded for more than the service takes, whatever the model can."""
        if 0 < self._max_prompt_tokens < num_tokens:
            raise ContextLengthExceeded(
                f"The {param} came to {num_tokens} tokens; at most {self._max_prompt_tokens} are "
                "taken. Please shorten the input.",
                param=param,
            )


def _sampling_of_choice(job: Job, index: int) -> Sampling:
    if job.sampling.seed is None or index == 0:
        return job.sampling
    return msgspec.structs.replace(job.sampling, seed=job.sampling.seed + index)
