"""The answer piece by piece, and its usage.

python stream.py "What is the capital of France?"
"""

import os
import sys

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
question = " ".join(sys.argv[1:]) or "What is the capital of France?"
stream = client.chat.completions.create(
    model=os.environ.get("MODEL", "gemma-3-270m"),
    messages=[{"role": "user", "content": question}],
    max_tokens=100,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    if chunk.usage:
        print()
        print(f"{chunk.usage.completion_tokens} tokens", file=sys.stderr)
