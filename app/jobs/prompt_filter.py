"""The denylist in the web tier: prompts are looked at here, before they are queued."""

from collections.abc import Iterator

import msgspec
from flask import Flask, Response, g

from app.services import services
from shared.errors import ContentFiltered
from shared.messages import ChatMessage, Job, JobKind

HEADER = "x-llmis-filter"
_PARAMS = {JobKind.CHAT: "messages", JobKind.COMPLETION: "prompt", JobKind.EMBEDDING: "input"}
"""What is looked at, by the parameter that an error names."""


def register(app: Flask) -> None:
    app.after_request(_send_tags)


def check_prompt(job: Job) -> None:
    """Refuse or tag the request at hand for what it says. Raises ContentFiltered."""
    file = services().denylist
    if file is None or job.kind not in _PARAMS:
        return
    rules = file.current.on_prompts(job.model)
    if rules is None:
        return
    tags: dict[str, None] = {}
    for text in _texts(job):
        found = rules.refuse.rules_in(text) if rules.refuse is not None else []
        if found:
            g.facts.note_match(found[0].name, "refuse", "prompt")
            raise ContentFiltered.by(found[0].name, _PARAMS[job.kind])
        if rules.tag is not None:
            tags |= dict.fromkeys(rule.name for rule in rules.tag.rules_in(text))
    for name in tags:
        g.facts.note_match(name, "tag", "prompt")
    g.filter_tags = list(tags)


def _texts(job: Job) -> Iterator[str]:
    """All texts of a request that reach the model. Token ids are no text here: the replica looks
    at those."""
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


def _send_tags(response: Response) -> Response:
    tags = g.get("filter_tags")
    if tags:
        response.headers[HEADER] = ", ".join(tags)
    return response
