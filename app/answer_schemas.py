"""The types of the answers as clients see them, derived from the shapes of `app.answers`.

`app.answers` fills one shape for all endpoints, with choices of any kind. Here each endpoint's
answer has a type of its own for the OpenAPI document; a field that a shape gains is in it.
"""

from types import GenericAlias
from typing import Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import UNSET, Struct, UnsetType

from app import answers


class CancelAnswer(Struct, frozen=True):
    """The request ends soon; it may still end by itself."""

    id: str
    object: Literal["request"] = "request"
    status: Literal["cancelling"] = "cancelling"


def _derived(name: str, base: type[Struct], doc: str, **fields: Any) -> type[Struct]:
    """A type like `base` with other types of some fields."""
    return msgspec.defstruct(
        name,
        list(fields.items()),
        bases=(base,),
        namespace={"__doc__": doc},
        module=__name__,
        kw_only=True,
    )


def _answer(name: str, object_: str, choice: type[Struct], doc: str) -> type[Struct]:
    return _derived(
        name, answers._Answer, doc, object=Literal[object_], choices=GenericAlias(list, choice)
    )


def _union(name: str, shape: Any, doc: str) -> type[Struct]:
    """One type for a union of types: what not all of them have may be missing."""
    hints = [get_type_hints(option) for option in get_args(shape) or (shape,)]
    merged: list[Any] = []
    for field, hint in {field: hint for each in hints for field, hint in each.items()}.items():
        is_certain = all(field in each for each in hints)
        merged.append((field, hint) if is_certain else (field, hint | UnsetType, UNSET))
    return msgspec.defstruct(name, merged, namespace={"__doc__": doc}, module=__name__)


_delta = _union(
    "ChatDelta",
    get_type_hints(answers._ChatDelta)["delta"],
    "What the message of a choice gains.",
)
ChatCompletion = _answer(
    "ChatCompletion",
    answers.ChatShape.whole_object,
    answers._ChatChoice,
    "A whole answer to a conversation.",
)
ChatCompletionChunk = _answer(
    "ChatCompletionChunk",
    answers.ChatShape.chunk_object,
    _derived("ChatChunkChoice", answers._ChatDelta, "A piece of one choice.", delta=_delta),
    "A piece of a streamed answer to a conversation.",
)
Completion = _answer(
    "Completion",
    answers.CompletionShape.whole_object,
    answers._TextChoice,
    "The continuations of the prompts.",
)
CompletionChunk = _answer(
    "CompletionChunk",
    answers.CompletionShape.chunk_object,
    answers._TextChoice,
    "A piece of a streamed continuation.",
)
