"""Results of loads that never ran."""

from typing import Any

from bench.load import LoadResult
from bench.measure import Numbers
from bench.sse import Stream


def stream(sent_at: float, *chunk_at: float, text: str = " 1", prompt_tokens: int = 1) -> Stream:
    """One token a chunk; it ends with its last chunk."""
    return Stream(
        sent_at=sent_at,
        ended_at=chunk_at[-1],
        chunk_at=list(chunk_at),
        chunk_texts=[text] * len(chunk_at),
        completion_tokens=len(chunk_at),
        prompt_tokens=prompt_tokens,
    )


def result(*streams: Stream, late: Stream | None = None) -> LoadResult:
    """Web 0.2 s of CPU, replica 0.6 s."""
    return LoadResult(
        streams=list(streams),
        late=late,
        server_cpu_before={"web": 1.0, "replica": 2.0},
        server_cpu_after={"web": 1.2, "replica": 2.6},
        load_cpu_s=0.1,
        machine_cpu_s=1.0,
    )


def numbers(**given: Any) -> Numbers:
    """All ones but what is given."""
    fields: dict[str, Any] = dict.fromkeys(Numbers.__struct_fields__, 1.0)
    return Numbers(**{**fields, "cpu_by_role": {}, **given})
