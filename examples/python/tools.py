"""A tool call: the model calls the tool, this program runs it, the model answers.

The first request names the tool in `tool_choice`: that makes any model call it, with arguments that
fit the schema. The second one forbids calls. A model that was trained to use tools decides by
itself: omit `tool_choice` and repeat until an answer has no `tool_calls`.

    python tools.py "How many apples are there?"
"""

import json
import os
import sys

from openai import OpenAI

STOCK = {"apples": 41, "pears": 7}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "stock",
            "description": "How many of them are in the store.",
            "parameters": {
                "type": "object",
                "properties": {"fruit": {"type": "string", "enum": list(STOCK)}},
                "required": ["fruit"],
                "additionalProperties": False,
            },
        },
    }
]

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
question = " ".join(sys.argv[1:]) or "How many apples are there?"
messages = [{"role": "user", "content": question}]


def ask(tool_choice):
    answer = client.chat.completions.create(
        model=os.environ.get("MODEL", "gemma-3-270m"),
        messages=messages,
        tools=TOOLS,
        tool_choice=tool_choice,
        max_tokens=100,
        temperature=0,
    )
    messages.append(answer.choices[0].message)
    return messages[-1]


for call in ask({"type": "function", "function": {"name": "stock"}}).tool_calls:
    found = STOCK[json.loads(call.function.arguments)["fruit"]]
    print(f"{call.function.name}({call.function.arguments}) = {found}")
    messages.append({"role": "tool", "tool_call_id": call.id, "content": str(found)})
print(ask("none").content)
