"""How each endpoint words a job's events: as chunks, or as one whole answer.

Shapes only, no input or output.
"""

from typing import Any, Protocol

from msgspec import UNSET, UnsetType

from app.answer_objects import (
    AnswerObject,
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    FunctionCall,
    PromptTokensDetails,
    TextChoice,
    TokenUsage,
    ToolCallObject,
    ToolCallPiece,
)
from app.choices import Choice, best, share_echoes
from app.job_stream import join
from app.logprob_filter import LogprobFilter
from app.logprobs import (
    ChatLogprobs,
    CompletionLogprobs,
    CompletionLogprobsWriter,
    chat_logprobs,
    joined,
    prompt_logprobs,
)
from shared.messages import (
    Delta,
    Echo,
    Event,
    Finished,
    Job,
    JobKind,
    Timings,
    TokenLogprobs,
    ToolCallDelta,
    Usage,
)
from shared.version import VERSION

_FINGERPRINT = f"llmis-{VERSION}"


class AnswerShape(Protocol):
    """How one endpoint words its answers. Made from the job alone, so that any process words the
    same answer, today or when its reader comes back."""

    num_choices: int
    """Choices that are made, all prompts together."""

    def opening(self) -> list[Any]:
        """Chunks before any text."""

    def of(self, event: Event) -> list[Any]:
        """The chunks of the next event."""

    def whole(self, choices: list[Choice], finished: Finished) -> Any: ...


class _Shape:
    chunk_object: str
    whole_object: str
    id_prefix: str

    def __init__(self, job: Job) -> None:
        self._id = f"{self.id_prefix}-{job.id}"
        self._created = int(job.created_at)
        self._model = job.model
        self._wants_usage = job.answer.wants_usage
        self._wants_logprobs = job.answer.wants_logprobs
        self._tier: str | UnsetType = job.answer.tier or UNSET
        self._metadata: dict[str, str] | UnsetType = job.answer.metadata or UNSET
        self.num_choices = job.num_choices * max(1, len(job.prompts))
        self._logprob_filters = [LogprobFilter() for _ in range(self.num_choices)]

    def _logprobs_of(self, delta: Delta) -> list[TokenLogprobs]:
        return self._logprob_filters[delta.index].pass_(delta)

    def _chunk(self, choices: list[Any]) -> AnswerObject:
        answer = self._answer(self.chunk_object, choices)
        if self._wants_usage:
            answer.usage = None
        return answer

    def _answer(self, object_: str, choices: list[Any]) -> AnswerObject:
        return AnswerObject(
            self._id,
            object_,
            self._created,
            self._model,
            choices,
            system_fingerprint=_FINGERPRINT,
            service_tier=self._tier,
        )

    def of(self, event: Event) -> list[Any]:
        if isinstance(event, Delta | Echo):
            return self._chunks(event)
        return self._closing(event) if isinstance(event, Finished) else []

    def _chunks(self, event: Delta | Echo) -> list[Any]:
        raise NotImplementedError

    def _closing(self, finished: Finished) -> list[Any]:
        """Chunks after all text: the usage, when it was asked for."""
        if not self._wants_usage:
            return []
        chunk = self._chunk([])
        chunk.usage = usage(finished.usage)
        return [chunk]

    def _whole(self, choices: list[Any], finished: Finished) -> AnswerObject:
        answer = self._answer(self.whole_object, choices)
        answer.usage, answer.metadata = usage(finished.usage), self._metadata
        return answer


class ChatShape(_Shape):
    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"
    id_prefix = "chatcmpl"

    def opening(self) -> list[Any]:
        return [self._piece(i, ChatDelta("assistant", "")) for i in range(self.num_choices)]

    def _piece(
        self,
        index: int,
        delta: ChatDelta,
        logprobs: ChatLogprobs | None = None,
        reason: str | None = None,
    ) -> AnswerObject:
        return self._chunk([ChatChunkChoice(index, delta, logprobs, reason)])

    def _chunks(self, event: Delta | Echo) -> list[Any]:
        if isinstance(event, Echo):
            return []
        deltas = []
        if event.reasoning:
            deltas.append(ChatDelta(reasoning_content=event.reasoning))
        if event.text:
            deltas.append(ChatDelta(content=event.text))
        if event.tool_calls:
            deltas.append(ChatDelta(tool_calls=[_piece_of_call(c) for c in event.tool_calls]))
        logprobs = chat_logprobs(self._logprobs_of(event))
        if logprobs.content and not deltas:
            deltas.append(ChatDelta())  # their text is held back for now
        chunks = [self._piece(event.index, delta) for delta in deltas]
        if logprobs.content:
            chunks[0].choices[0].logprobs = logprobs
        if event.finish_reason is not None:
            chunks.append(self._piece(event.index, ChatDelta(), None, event.finish_reason))
        return chunks

    def whole(self, choices: list[Choice], finished: Finished) -> Any:
        return self._whole([self._choice(i, choice) for i, choice in enumerate(choices)], finished)

    def _choice(self, index: int, choice: Choice) -> ChatChoice:
        calls = [
            ToolCallObject(call.id, FunctionCall(call.name, "".join(call.arguments)))
            for _, call in sorted(choice.tool_calls.items())
        ]
        message = AssistantMessage("assistant", choice.text or (None if calls else ""))
        message.reasoning_content = choice.reasoning or UNSET
        message.tool_calls = calls or UNSET
        logprobs = chat_logprobs(choice.logprobs) if self._wants_logprobs else None
        return ChatChoice(index, message, logprobs, _reason(choice))


class CompletionShape(_Shape):
    chunk_object = "text_completion"
    whole_object = "text_completion"
    id_prefix = "cmpl"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._num_made, self._num_wanted = job.num_choices, job.answer.num_wanted
        self._prompts = job.prompts if job.echo else []
        self._writers: dict[int, CompletionLogprobsWriter] = {}
        """By choice; with `echo` a choice gets its own when its prompt is echoed."""
        self._worded: dict[int, CompletionLogprobs] = {}
        """Of echoed prompts: they are long, and their choices share them."""
        self._held: list[Event] = []
        """Of choices that wait for the echo of their prompt."""
        if not job.echo:
            self._writers = {i: CompletionLogprobsWriter() for i in range(self.num_choices)}

    def opening(self) -> list[Any]:
        return []

    def _chunks(self, event: Delta | Echo) -> list[Any]:
        if isinstance(event, Echo):
            return self._open(event)
        if event.index not in self._writers:
            self._held.append(event)
            return []
        return self._delta(event)

    def _open(self, echo: Echo) -> list[Any]:
        """All choices of a prompt begin with it; what they have gained meanwhile comes next."""
        chunks: list[Any] = []
        logprobs = self._of_prompt(echo)
        for index in range(echo.index, echo.index + self._num_made):
            self._writers[index] = CompletionLogprobsWriter(len(echo.text))
            if echo.text:
                chunks.append(self._piece(index, echo.text, logprobs))
        # Joined: the chunks must not depend on how the deltas arrived.
        held, self._held = join(self._held), []
        return chunks + [chunk for delta in held for chunk in self.of(delta)]

    def _delta(self, delta: Delta) -> list[Any]:
        logprobs = None
        if self._wants_logprobs:
            logprobs = self._writers[delta.index].write(self._logprobs_of(delta))
        if not delta.text and delta.finish_reason is None and not (logprobs and logprobs.tokens):
            return []
        return [self._piece(delta.index, delta.text, logprobs, delta.finish_reason)]

    def _piece(
        self, index: int, text: str, logprobs: CompletionLogprobs | None, reason: str | None = None
    ) -> AnswerObject:
        return self._chunk([TextChoice(index, text, logprobs, reason)])

    def _of_prompt(self, echo: Echo) -> CompletionLogprobs | None:
        if not self._wants_logprobs:
            return None
        if echo.index not in self._worded:
            prompt = self._prompts[echo.index // self._num_made]
            self._worded[echo.index] = prompt_logprobs(prompt, echo)
        return self._worded[echo.index]

    def whole(self, choices: list[Choice], finished: Finished) -> Any:
        share_echoes(choices, self._num_made)
        kept = best(choices, self._num_made, self._num_wanted)
        return self._whole([self._choice(i, choice) for i, choice in enumerate(kept)], finished)

    def _choice(self, index: int, choice: Choice) -> TextChoice:
        echoed = choice.echo.text if choice.echo else ""
        logprobs = None
        if self._wants_logprobs:
            logprobs = CompletionLogprobsWriter(len(echoed)).write(choice.logprobs)
            if choice.echo:
                logprobs = joined(self._of_prompt(choice.echo), logprobs)
        return TextChoice(index, echoed + choice.text, logprobs, _reason(choice))


class WholeAnswer:
    """A whole answer of any shape. See `app.whole_jobs.Answer`."""

    def __init__(self, job: Job) -> None:
        self._shape = shape_for(job)
        self._choices = [Choice() for _ in range(self._shape.num_choices)]

    def take(self, event: Event) -> None:
        if isinstance(event, Delta | Echo):
            self._choices[event.index].add(event)

    def body(self, finished: Finished) -> Any:
        return self._shape.whole(self._choices, finished)


def shape_for(job: Job) -> AnswerShape:
    assert job.kind in (JobKind.CHAT, JobKind.COMPLETION), "the others have no chunks"
    return ChatShape(job) if job.kind is JobKind.CHAT else CompletionShape(job)


def _reason(choice: Choice) -> str:
    assert choice.finish_reason is not None, "a job ends when all its choices have"
    return choice.finish_reason


def _piece_of_call(piece: ToolCallDelta) -> ToolCallPiece:
    is_first = piece.id is not None
    return ToolCallPiece(
        piece.index,
        piece.id,
        "function" if is_first else None,
        FunctionCall(piece.name, piece.arguments),
    )


def usage(counted: Usage) -> TokenUsage:
    return TokenUsage(
        counted.prompt_tokens,
        counted.completion_tokens,
        counted.prompt_tokens + counted.completion_tokens,
        PromptTokensDetails(counted.cached_tokens),
    )


def timings_ms(timings: Timings) -> dict[str, float]:
    """The replica's durations for a client that wants to show them."""
    return {
        "queue_ms": round(1000 * timings.queue_s, 3),
        "prefill_ms": round(1000 * timings.prefill_s, 3),
        "decode_ms": round(1000 * timings.decode_s, 3),
    }
