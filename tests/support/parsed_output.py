"""What a client puts together of generated text that the output parser has split."""

import json
from dataclasses import dataclass, field
from typing import Any

from shared.wire.job import Tool
from worker.chat.output_parser import OutputParser
from worker.chat.tool_call_formats import CallSyntax
from worker.text_parts import Parts

TOOLS = [Tool("a", "", {"properties": {"city": {"type": "string"}, "n": {"type": "array"}}})]


@dataclass
class Result:
    """What a client has put together from the parts."""

    content: str = ""
    reasoning: str = ""
    ids: list[str] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)

    def add(self, parts: Parts) -> None:
        self.content += parts.content
        self.reasoning += parts.reasoning
        for delta in parts.tool_calls:
            if delta.id is not None:
                assert delta.index == len(self.calls) and delta.name
                self.ids.append(delta.id)
                self.calls.append((delta.name, ""))
            name, arguments = self.calls[delta.index]
            assert delta.index == len(self.calls) - 1
            self.calls[delta.index] = (name, arguments + delta.arguments)


def parsed(pieces: list[str] | str, *, is_cut: bool = False, **options: Any) -> Result:
    parser = OutputParser(("j", 0), tools=TOOLS, **options)
    result = Result()
    for piece in pieces:
        result.add(parser.push(piece))
    result.add(parser.finish(is_cut=is_cut))
    assert parser.has_calls == bool(result.calls)
    are_whole = all(_is_json_object(arguments) for _, arguments in result.calls)
    assert parser.has_whole_calls == (are_whole and bool(result.calls))
    return result


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text, parse_constant=_refuse), dict)
    except ValueError:
        return False


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def parsed_whole(text: str, calls: CallSyntax | None = CallSyntax.HERMES, **options: Any) -> Result:
    return parsed([text], calls=calls, **options)


def at_every_cut(text: str, calls: CallSyntax, **options: Any) -> Result:
    """The result of the whole text, after a check that no cut into two or single characters
    changes it."""
    whole = parsed_whole(text, calls, **options)
    assert parsed(text, calls=calls, **options) == whole
    for cut in range(len(text)):
        assert parsed([text[:cut], text[cut:]], calls=calls, **options) == whole
    return whole
