"""One question, one answer.

python chat.py "What is the capital of France?"
"""

import os
import sys

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
question = " ".join(sys.argv[1:]) or "What is the capital of France?"
answer = client.chat.completions.create(
    model=os.environ.get("MODEL", "gemma-3-270m"),
    messages=[{"role": "user", "content": question}],
    max_tokens=100,
    temperature=0,
)
print(answer.choices[0].message.content)
print(f"{answer.usage.total_tokens} tokens, request {answer._request_id}", file=sys.stderr)
