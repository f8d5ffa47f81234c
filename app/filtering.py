"""The denylist in the web tier: prompts are looked at here, before they are queued; what replicas
have found in answers is counted here."""

from collections.abc import Iterator

import msgspec
from flask import Flask, Response, g

from app.metrics import FILTER_MATCHES
from app.services import services
from shared.errors import ContentFiltered
from shared.messages import ChatMessage, Delta, Event, Failed, Job, JobKind

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
            _note(job.model, "refuse", found[0].name)
            raise ContentFiltered.by(found[0].name, _PARAMS[job.kind])
        if rules.tag is not None:
            tags |= dict.fromkeys(rule.name for rule in rules.tag.rules_in(text))
    for name in tags:
        _note(job.model, "tag", name)
    g.filter_tags = list(tags)


def _note(model: str, action: str, rule: str) -> None:
    _count(model, action, "prompt")
    g.line.note_rule(rule)


def count(model: str, events: list[Event]) -> None:
    """Count what a replica has found."""
    for event in events:
        if isinstance(event, Delta) and event.filtered is not None:
            for match in event.filtered.matches:
                _count(model, match.action, "output")
        elif isinstance(event, Failed) and event.code == ContentFiltered.code:
            _count(model, "refuse", "prompt")


def _count(model: str, action: str, where: str) -> None:
    FILTER_MATCHES.labels(model, action, where).inc()


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
