"""Chat jobs for tests."""

from typing import Any

from shared.wire.job import ChatMessage, Job, JobKind, Tool

WEATHER = Tool(
    "get_weather",
    "Weather of a city",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"$ref": "#/$defs/days"}},
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"days": {"type": "integer", "minimum": 1}},
    },
)
TIME = Tool("get_time")


def chat_job(*messages: ChatMessage, **fields: Any) -> Job:
    base: dict[str, Any] = {
        "id": "j",
        "model": "m",
        "kind": JobKind.CHAT,
        "messages": list(messages) or [ChatMessage("user", "hi")],
        "created_at": 0.0,
        "deadline_at": 1.0,
    }
    return Job(**(base | fields))
