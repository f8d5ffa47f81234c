"""Answers in a form that two runs share, with the order of keys kept.

Ids, times, counts of cached tokens and the wording of errors become placeholders. How tokens are
grouped into chunks depends on timing: neighbouring chunks of one choice are joined, and choices
follow each other by index.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from shared.version import VERSION

_END = b"data: [DONE]\n\n"
_EVENT_ID = r"{}:\d+(\+\d+\.\d+)?"
_CALL_ID = re.compile(r"call_[0-9a-f]{24}")
_NOT_FROZEN: dict[str, Any] = {"created": 0, "cached_tokens": 0, "message": "<message>"}
"""Key → placeholder. An object under such a key, as the message of a choice, is no such value."""
_CONTINUED_CALL = ["index", "function"]
"""Keys of a piece of a tool call behind its first one."""


def decode(payload: bytes) -> Any:
    """Decode JSON that must be written as the service writes it: compact, UTF-8."""
    value = msgspec.json.decode(payload)
    assert encode(value) == payload.decode(), "JSON of another style"
    return value


def encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def canonical_json(body: bytes, request_id: str) -> str:
    """A whole answer, an error, or any other JSON."""
    return text_of(decode(body), request_id)


def text_of(value: Any, request_id: str) -> str:
    """JSON of a decoded value with its volatile parts replaced."""
    text = encode(without_volatile(value))
    if request_id:
        text = text.replace(request_id, "<request>")
    text = _CALL_ID.sub("call_<id>", text)
    return text.replace(f"llmis-{VERSION}", "llmis-<version>")


def canonical_stream(body: bytes, request_id: str, *, is_joined: bool = True) -> str:
    """An event stream. `is_joined`: whether neighbouring chunks of a choice become one."""
    body = re.sub(rb"(?m)^: [^\n]*\n", b"", body)  # comments tell of waiting
    rest = body.removesuffix(_END)
    chunks = []
    for event_id, data in _events(rest):
        assert is_event_id(event_id, request_id), event_id
        chunks.append(decode(data))
    texts = [text_of(c, request_id) for c in (joined(chunks) if is_joined else chunks)]
    events = [f"id: <event>\ndata: {text}\n" for text in texts]
    return "\n".join(events + [_END.decode()[:-1]] * (rest != body))


def _events(body: bytes) -> Iterator[tuple[str, bytes]]:
    """Id and data of each event before the end."""
    assert body.endswith(b"\n\n"), body[-200:]
    for event in body.removesuffix(b"\n\n").split(b"\n\n"):
        found = re.fullmatch(rb"id: ([^\n]+)\ndata: ([^\n]+)", event)
        assert found is not None, event
        yield found[1].decode(), found[2]


def is_event_id(text: str, request_id: str) -> bool:
    return re.fullmatch(_EVENT_ID.format(re.escape(request_id)), text) is not None


def joined(chunks: list[Any]) -> list[Any]:
    """The chunks of a stream: what opens it, each choice, the usage."""
    ranks = [_rank(chunk) for chunk in chunks]
    assert ranks == sorted(ranks), f"roles come first and the usage last: {ranks}"
    opening = [chunk for chunk, rank in zip(chunks, ranks, strict=True) if rank == 0]
    closing = [chunk for chunk, rank in zip(chunks, ranks, strict=True) if rank == 2]
    choices: dict[int, list[Any]] = {}
    for chunk, rank in zip(chunks, ranks, strict=True):
        if rank == 1:
            choices.setdefault(chunk["choices"][0]["index"], []).append(chunk)
    return opening + [c for index in sorted(choices) for c in _joined(choices[index])] + closing


def _rank(chunk: Any) -> int:
    if not chunk.get("choices"):
        return 2
    assert len(chunk["choices"]) == 1, "a chunk has one choice"
    return 0 if "role" in chunk["choices"][0].get("delta", {}) else 1


def _joined(chunks: list[Any]) -> list[Any]:
    """The chunks of one choice: text, then the end."""
    found: list[Any] = []
    for part in (part for chunk in chunks for part in _parts(chunk)):
        if found and _can_join(found[-1], part):
            _join(found[-1], part)
        else:
            found.append(part)
    return found


def _parts(chunk: Any) -> list[Any]:
    """The end of a legacy completion comes with its last text, however much that is: put it behind
    all text."""
    choice = chunk["choices"][0]
    if choice["finish_reason"] is None or "text" not in choice:
        return [chunk]
    text = {**chunk, "choices": [{**choice, "finish_reason": None}]}
    end = {**chunk, "choices": [{**choice, "text": "", "logprobs": None}]}
    has_text = choice["text"] or (choice["logprobs"] or {}).get("tokens")
    return [text, end] if has_text else [end]


def _can_join(before: Any, after: Any) -> bool:
    kinds = [_kind(before), _kind(after)]
    return (
        _frame(before) == _frame(after)
        and before["choices"][0]["finish_reason"] is None
        and (kinds[0] == kinds[1] or [] in kinds)
    )


def _frame(chunk: Any) -> str:
    """All of a chunk but what grows, in its order of keys."""
    choice = dict.fromkeys(chunk["choices"][0]) | {
        key: chunk["choices"][0][key] for key in ("index", "finish_reason")
    }
    return encode({**chunk, "choices": [choice]})


def _kind(chunk: Any) -> list[str]:
    return list(chunk["choices"][0].get("delta", ["text"]))


def _join(before: Any, after: Any) -> None:
    """Add what `after` brings to `before`."""
    target, source = before["choices"][0], after["choices"][0]
    target["logprobs"] = _sum_of_logprobs(target["logprobs"], source["logprobs"])
    if "text" in source:
        target["text"] += source["text"]
        return
    for key, value in source["delta"].items():
        if key not in target["delta"]:
            target["delta"][key] = value
        elif key == "tool_calls":
            _join_calls(target["delta"][key], value)
        else:
            target["delta"][key] += value


def _join_calls(calls: list[Any], pieces: list[Any]) -> None:
    for piece in pieces:
        same = next((call for call in calls if call["index"] == piece["index"]), None)
        if same is None:
            calls.append(piece)
            continue
        assert list(piece) == _CONTINUED_CALL and list(piece["function"]) == ["arguments"], piece
        same["function"]["arguments"] += piece["function"]["arguments"]


def _sum_of_logprobs(before: Any, after: Any) -> Any:
    if before is None or after is None:
        return after if before is None else before
    assert list(before) == list(after)
    return {
        key: before[key] + after[key] if isinstance(before[key], list) else before[key]
        for key in before
    }


def without_volatile(value: Any) -> Any:
    """Replace what two runs do not share by placeholders."""
    if isinstance(value, list):
        return [without_volatile(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, item in value.items():
        if key == "logprobs" and isinstance(item, dict):
            found[key] = _rounded_logprobs(item)
        elif key in _NOT_FROZEN and isinstance(item, type(_NOT_FROZEN[key])):
            found[key] = _NOT_FROZEN[key]
        else:
            found[key] = without_volatile(item)
    return found


def _rounded_logprobs(logprobs: dict[str, Any]) -> dict[str, Any]:
    """Which of several equally improbable tokens are the alternatives depends on the processor."""
    if "content" in logprobs:
        return {**logprobs, "content": [_rounded_token(token) for token in logprobs["content"]]}
    tops = zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True)
    return {
        **logprobs,
        "token_logprobs": [_rounded(value) for value in logprobs["token_logprobs"]],
        "top_logprobs": [top and _rounded_alternatives(token, top) for token, top in tops],
    }


def _rounded_token(token: dict[str, Any]) -> dict[str, Any]:
    tops = []
    for top in token["top_logprobs"]:
        shown = {**top, "logprob": _rounded(top["logprob"])}
        if top["token"] != token["token"]:
            shown |= {"token": "<alternative>", "bytes": []}
        tops.append(shown)
    return {**token, "logprob": _rounded(token["logprob"]), "top_logprobs": tops}


def _rounded_alternatives(chosen: str, top: dict[str, float]) -> dict[str, Any]:
    return {
        token if token == chosen else f"<alternative {number}>": _rounded(value)
        for number, (token, value) in enumerate(top.items())
    }


def _rounded(value: float | None) -> float | None:
    """To a tenth, without a negative zero."""
    return None if value is None else round(value, 1) + 0.0
