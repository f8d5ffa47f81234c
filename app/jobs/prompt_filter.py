"""The denylist in the web tier: prompts are checked here, before they are queued."""

from collections.abc import Iterator

import msgspec

from app.metrics.request_record import RequestRecord
from shared.denylist.denylist import Denylist
from shared.errors import ContentFiltered
from shared.wire.job import ChatMessage, Job, JobKind

HEADER = "x-llmis-filter"
_PARAMS = {JobKind.CHAT: "messages", JobKind.COMPLETION: "prompt", JobKind.EMBEDDING: "input"}
"""Kinds of jobs that are checked, with the parameter that an error names."""


def check_prompt(job: Job, denylist: Denylist, record: RequestRecord) -> list[str]:
    """Names of the rules that only tag the prompt. Matches are noted in `record`. Raises
    ContentFiltered."""
    rules = denylist.on_prompts(job.model) if job.kind in _PARAMS else None
    if rules is None:
        return []
    tags: dict[str, None] = {}
    for text in _texts(job):
        found = rules.refuse.rules_in(text) if rules.refuse is not None else []
        if found:
            record.note_match(found[0].name, "refuse", "prompt")
            raise ContentFiltered.by(found[0].name, _PARAMS[job.kind])
        if rules.tag is not None:
            tags |= dict.fromkeys(rule.name for rule in rules.tag.rules_in(text))
    for name in tags:
        record.note_match(name, "tag", "prompt")
    return list(tags)


def _texts(job: Job) -> Iterator[str]:
    """All texts of a request that reach the model. Prompts of token ids are left out: the replica
    checks their texts."""
    yield from (prompt for prompt in job.prompts if isinstance(prompt, str))
    if job.suffix is not None:
        yield job.suffix
    for message in job.messages:
        yield from _texts_of(message)
    for tool in job.tools:
        yield from (tool.name, tool.description, msgspec.json.encode(tool.parameters).decode())
    if job.template_arguments:
        yield msgspec.json.encode(job.template_arguments).decode()


def _texts_of(message: ChatMessage) -> Iterator[str]:
    yield from (message.content, message.reasoning or "", message.name or "")
    for call in message.tool_calls:
        yield from (call.name, call.arguments)
