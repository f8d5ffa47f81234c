"""What a template gets after it has refused the messages as they are: the same texts in an order of
roles that it may accept. Most templates accept few orders, and only rendering shows which."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, combinations, groupby
from operator import itemgetter
from typing import Any

Messages = list[dict[str, Any]]
"""With strings as contents."""


def arrangements() -> Iterator[Callable[[Messages], Messages]]:
    """Functions that rearrange messages: first nothing, then each change alone, then two of them
    together, and so on. The first one whose result the template accepts is used."""
    for number in range(len(_CHANGES) + 1):
        for changes in combinations(_CHANGES, number):
            yield partial(_apply, changes)


def _apply(changes: tuple[Callable[[Messages], Messages], ...], messages: Messages) -> Messages:
    for change in changes:
        messages = change(messages)
    return messages


def _one_system_first(messages: Messages) -> Messages:
    """The leading system messages are one. A later one is the user's, in its place; but the answers
    to calls stay with the calls."""
    system, rest = _split(messages)
    arranged, late = system, Messages()
    for message in rest:
        if message["role"] == "system":
            late.append(message | {"role": "user"})
            continue
        if message["role"] != "tool":
            arranged += late
            late.clear()
        arranged.append(message)
    return arranged + late


def _alternating(messages: Messages) -> Messages:
    """Neighbours of one role, the user's or the assistant's, are one message; an empty message of
    the user precedes an assistant that begins."""
    arranged = Messages()
    before = "system"
    for role, neighbours in groupby(messages, itemgetter("role")):
        run = list(neighbours)
        if role == "assistant" and before == "system":
            arranged.append({"role": "user", "content": ""})
        arranged += [_joined(run)] if role in ("user", "assistant") else run
        before = role
    return arranged


def _answered_by_assistant(messages: Messages) -> Messages:
    """An empty message of the assistant stands between calls, or their answers, and the user."""
    arranged = Messages()
    for message in messages:
        before = arranged[-1] if arranged else {"role": ""}
        if message["role"] == "user" and (before["role"] == "tool" or before.get("tool_calls")):
            arranged.append({"role": "assistant", "content": ""})
        arranged.append(message)
    return arranged


def _no_system(messages: Messages) -> Messages:
    """The leading system messages are the begin of the user's first message."""
    system, rest = _split(messages)
    if not system:
        return rest
    user = system[0] | {"role": "user"}
    if rest and rest[0]["role"] == "user":
        user = _joined([user, rest.pop(0)])
    return [user, *rest]


def _one_call_each(messages: Messages) -> Messages:
    """A message with several calls is one for each call, followed by the call's answers."""
    arranged, rest = Messages(), deque(messages)
    while rest:
        message = rest.popleft()
        calls = message.get("tool_calls") or []
        if len(calls) < 2:
            arranged.append(message)
            continue
        answers = Messages()
        while rest and rest[0]["role"] == "tool":
            answers.append(rest.popleft())
        for call in calls:
            arranged.append(message | {"tool_calls": [call]})
            message = {"role": "assistant", "content": ""}
            arranged += [one for one in answers if one.get("tool_call_id") == call["id"]]
        ids = {call["id"] for call in calls}
        arranged += [one for one in answers if one.get("tool_call_id") not in ids]
    return arranged


def _never_empty(messages: Messages) -> Messages:
    """A message of the assistant without text and calls has a blank."""
    return [
        message | {"content": " "}
        if message["role"] == "assistant" and not (message["content"] or message.get("tool_calls"))
        else message
        for message in messages
    ]


_CHANGES = (
    _one_system_first,
    _alternating,
    _answered_by_assistant,
    _no_system,
    _one_call_each,
    _never_empty,
)
"""In the order in which they are applied."""


def _split(messages: Messages) -> tuple[Messages, Messages]:
    """The leading system messages, joined, and the others."""
    roles = map(itemgetter("role"), messages)
    num_system = next((at for at, role in enumerate(roles) if role != "system"), len(messages))
    system, rest = messages[:num_system], messages[num_system:]
    return [_joined(system)] if system else [], rest


def _joined(run: Messages) -> dict[str, Any]:
    """One message for several of one role."""
    whole = dict(chain.from_iterable(message.items() for message in run))
    if any(message.get("name") != run[0].get("name") for message in run):
        whole.pop("name", None)
    for key in whole.keys() - {"role", "name"}:
        values = [message[key] for message in run if key in message]
        if isinstance(values[0], str):
            whole[key] = "\n\n".join(filter(None, values))
        elif len(values) > 1:
            whole[key] = list(chain.from_iterable(values))
    return whole
