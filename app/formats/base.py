"""What chat and text completions have in common: ids, usage, logprobs, closing chunks."""

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from app.formats.choice import Choice
from app.formats.logprobs import LogprobFilter
from app.formats.objects import (
    AnswerObject,
    CompletionTokensDetails,
    PromptTokensDetails,
    TokenUsage,
)
from shared.version import VERSION
from shared.wire.events import Delta, Echo, Event, Finished, Timings, TokenLogprobs, Usage
from shared.wire.job import Job

FINGERPRINT = f"llmis-{VERSION}"
ChunkT = TypeVar("ChunkT", bound=AnswerObject[Any, Any])
_encode = msgspec.json.Encoder().encode


class Formatter(ABC, Generic[ChunkT]):
    """How one endpoint formats a job's events. Made from the job alone, so that every process makes
    the same answer, also when its reader comes back later."""

    id_prefix: str
    chunk_type: type[ChunkT]
    chunk_object: str

    def __init__(self, job: Job) -> None:
        self.num_choices = job.num_choices * max(1, len(job.prompts))
        """Choices that are made, all prompts together."""
        self._wants_usage = job.answer.wants_usage
        self._wants_logprobs = job.answer.wants_logprobs
        self._common: dict[str, Any] = {
            "id": f"{self.id_prefix}-{job.id}",
            "created": int(job.created_at),
            "model": job.model,
            "system_fingerprint": FINGERPRINT,
            "service_tier": job.answer.tier or UNSET,
        }
        """Fields of every chunk and answer."""
        self._empty_chunk: ChunkT = self.chunk_type(
            object=self.chunk_object,
            choices=[],
            usage=None if self._wants_usage else UNSET,
            **self._common,
        )
        self._metadata: dict[str, str] | UnsetType = job.answer.metadata or UNSET
        self._logprob_filters = [LogprobFilter() for _ in range(self.num_choices)]
        self._has_logprobs = job.logprobs is not None
        self._templates: dict[int, tuple[bytes, bytes]] = {}
        """By choice: the JSON of a chunk with text alone, before and behind the text."""

    def opening(self) -> list[ChunkT]:
        """Chunks before any text."""
        return []

    def of(self, event: Event) -> list[ChunkT]:
        """The chunks of the next event."""
        if isinstance(event, Delta):
            return self._delta(event)
        if isinstance(event, Echo):
            return self._echo(event)
        return self._closing(event) if isinstance(event, Finished) else []

    def text_chunk(self, delta: Delta) -> Raw | None:
        """The only chunk of a delta that has text and nothing else, as JSON: the bytes are those
        that the chunk of `of` is encoded as. None = it has more, or less: use `of`.

        Most deltas are such, and this takes a tenth of the time.
        """
        if (
            not delta.text
            or self._has_logprobs
            or delta.finish_reason is not None
            or delta.reasoning
            or delta.tool_calls
            or not self._has_begun(delta.index)
        ):
            return None
        template = self._templates.get(delta.index)
        if template is None:
            template = self._templates[delta.index] = self._template(delta.index)
        return Raw(template[0] + _encode(delta.text) + template[1])

    def _template(self, index: int) -> tuple[bytes, bytes]:
        # The first byte that differs is behind the quotation mark with which the text begins.
        shorter, longer = (_encode(self._chunk([self._text(index, text)])) for text in ("", "a"))
        pairs = zip(shorter, longer, strict=False)
        begin = next(i for i, (one, other) in enumerate(pairs) if one != other)
        return longer[: begin - 1], longer[begin + 2 :]

    @abstractmethod
    def _text(self, index: int, text: str) -> Any:
        """The choice of a chunk that has text and nothing else."""

    def _has_begun(self, index: int) -> bool:
        """Whether the deltas of a choice are chunks by now."""
        return True

    @abstractmethod
    def _delta(self, delta: Delta) -> list[ChunkT]: ...

    def _echo(self, echo: Echo) -> list[ChunkT]:
        return []

    def _chunk(self, choices: list[Any]) -> ChunkT:
        # A copy, and not by `copy.copy`: there is one for each token.
        chunk: ChunkT = self._empty_chunk.__copy__()  # type: ignore[attr-defined]
        chunk.choices = choices
        return chunk

    @abstractmethod
    def whole(self, choices: list[Choice], finished: Finished) -> AnswerObject[Any, Any]:
        """The answer that is not streamed."""

    def _closing(self, finished: Finished) -> list[ChunkT]:
        """Chunks after all text: the usage, when it was asked for."""
        if not self._wants_usage:
            return []
        chunk = self._chunk([])
        chunk.usage = token_usage(finished.usage)
        return [chunk]

    def _logprobs_of(self, delta: Delta) -> list[TokenLogprobs]:
        return self._logprob_filters[delta.index].release(delta)


def finish_reason_of(choice: Choice) -> str:
    assert choice.finish_reason is not None, "a job ends when all its choices have"
    return choice.finish_reason


def token_usage(counted: Usage) -> TokenUsage:
    reasoning = counted.reasoning_tokens
    return TokenUsage(
        counted.prompt_tokens,
        counted.completion_tokens,
        counted.prompt_tokens + counted.completion_tokens,
        PromptTokensDetails(counted.cached_tokens),
        UNSET if reasoning is UNSET else CompletionTokensDetails(reasoning),
    )


def timings_ms(timings: Timings) -> dict[str, float]:
    """The replica's durations for a client that wants to show them."""
    return {
        "queue_ms": round(1000 * timings.queue_s, 3),
        "prefill_ms": round(1000 * timings.prefill_s, 3),
        "decode_ms": round(1000 * timings.decode_s, 3),
    }
