"""Schemathesis loads this: its requests name a model that exists, and ask it for little."""

from typing import Any

import schemathesis

_MAX_TOKENS = 4


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """What is wrong about a body stays wrong: only usable values are made usual ones."""
    body = case.body
    if case.method == "POST" and len(repr(body)) % 4:
        # With made-up ones hardly any request is a new one.
        for name in ("Last-Event-ID", "Idempotency-Key"):
            case.headers.pop(name, None)
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        return
    body["model"] = "counter"
    for name in ("max_tokens", "max_completion_tokens"):
        if body.get(name) is None or _is_number(body[name], above=_MAX_TOKENS):
            body[name] = _MAX_TOKENS
    if _is_number(body.get("n"), above=2):
        body["n"] = 2
    if _is_number(body.get("timeout_s"), above=0):
        # Of less, a 504 is the right answer.
        body["timeout_s"] = 30


def _is_number(value: Any, *, above: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > above
