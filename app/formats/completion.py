"""The shapes of /v1/completions: chunks and whole answers, with echoed prompts."""

from app.formats.base import Formatter, finish_reason_of, token_usage
from app.formats.choice import Choice, best, share_echoes
from app.formats.logprobs import (
    CompletionLogprobs,
    CompletionLogprobsWriter,
    joined,
    prompt_logprobs,
)
from app.formats.objects import Completion, CompletionChunk, TextChoice
from shared.wire.events import Delta, Echo, Event, Finished, join
from shared.wire.job import Job


class CompletionFormatter(Formatter[CompletionChunk]):
    id_prefix = "cmpl"
    chunk_type = CompletionChunk
    chunk_object = "text_completion"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._num_made, self._num_wanted = job.num_choices, job.answer.num_wanted
        self._prompts = job.prompts if job.echo else []
        self._writers: dict[int, CompletionLogprobsWriter] = {}
        """By choice. With `echo` a choice gets its writer when its prompt is echoed."""
        self._echo_logprobs: dict[int, CompletionLogprobs] = {}
        """By the first choice of an echoed prompt. They are long, so its choices share them."""
        self._held: list[Event] = []
        """Deltas of choices whose prompt is not echoed yet."""
        if not job.echo:
            self._writers = {i: CompletionLogprobsWriter() for i in range(self.num_choices)}

    def _echo(self, echo: Echo) -> list[CompletionChunk]:
        """Begin all choices of a prompt with it, then send the deltas that waited for it."""
        chunks: list[CompletionChunk] = []
        logprobs = self._prompt_logprobs(echo)
        for index in range(echo.index, echo.index + self._num_made):
            self._writers[index] = CompletionLogprobsWriter(len(echo.text))
            if echo.text:
                chunks.append(self._chunk([TextChoice(index, echo.text, logprobs, None)]))
        # Joined, because the chunks must not depend on how the deltas arrived.
        held, self._held = join(self._held), []
        return chunks + [chunk for delta in held for chunk in self.of(delta)]

    def _text(self, index: int, text: str) -> TextChoice:
        return TextChoice(index, text, None, None)

    def _has_begun(self, index: int) -> bool:
        return index in self._writers

    def _delta(self, delta: Delta) -> list[CompletionChunk]:
        writer = self._writers.get(delta.index)
        if writer is None:
            self._held.append(delta)
            return []
        logprobs = writer.write(self._logprobs_of(delta)) if self._wants_logprobs else None
        if not delta.text and delta.finish_reason is None and not (logprobs and logprobs.tokens):
            return []
        choice = TextChoice(delta.index, delta.text, logprobs, delta.finish_reason)
        return [self._chunk([choice])]

    def _prompt_logprobs(self, echo: Echo) -> CompletionLogprobs | None:
        if not self._wants_logprobs:
            return None
        if echo.index not in self._echo_logprobs:
            prompt = self._prompts[echo.index // self._num_made]
            self._echo_logprobs[echo.index] = prompt_logprobs(prompt, echo)
        return self._echo_logprobs[echo.index]

    def whole(self, choices: list[Choice], finished: Finished) -> Completion:
        share_echoes(choices, self._num_made)
        kept = best(choices, self._num_made, self._num_wanted)
        return Completion(
            object="text_completion",
            choices=[self._choice(index, choice) for index, choice in enumerate(kept)],
            usage=token_usage(finished.usage),
            metadata=self._metadata,
            **self._common,
        )

    def _choice(self, index: int, choice: Choice) -> TextChoice:
        echoed = choice.echo.text if choice.echo else ""
        logprobs = None
        if self._wants_logprobs:
            logprobs = CompletionLogprobsWriter(len(echoed)).write(choice.logprobs)
            if choice.echo:
                logprobs = joined(self._prompt_logprobs(choice.echo), logprobs)
        return TextChoice(index, echoed + choice.text, logprobs, finish_reason_of(choice))
