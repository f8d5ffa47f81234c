"""A stream that survives its connection, with nothing but the openai package.

Every attempt is the same request with the same `Idempotency-Key`: the service runs it once, and
sends its answer from the beginning on every repetition. The client skips the text that it has
read. The example cuts its first connection itself, and compares its text with the answer that the
service has kept.

    python come_back.py "Tell me a story."
"""

import os
import sys
import time
import uuid

import openai

client = openai.OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
request = {
    "model": os.environ.get("MODEL", "gemma-3-270m"),
    "messages": [{"role": "user", "content": " ".join(sys.argv[1:]) or "Tell me a story."}],
    "max_tokens": 400,
    "extra_headers": {"Idempotency-Key": str(uuid.uuid4())},
}
text = ""
for attempt in range(1, 11):
    try:
        with client.chat.completions.create(**request, stream=True) as stream:
            request_id = stream.response.headers["x-request-id"]
            position = 0
            for chunk in stream:
                piece = chunk.choices[0].delta.content or ""
                text += piece[max(0, len(text) - position) :]
                position += len(piece)
                if attempt == 1 and len(text) >= 20:
                    raise ConnectionError("cut by the example")
        break
    except (openai.APIConnectionError, ConnectionError) as error:
        print(f"{len(text)} characters, then: {error}", file=sys.stderr)
        time.sleep(0.5)
else:
    sys.exit("The service cannot be reached.")

print(text)
kept = client.get(f"/requests/{request_id}", cast_to=object)
if text != kept["answer"]["choices"][0]["message"]["content"]:
    sys.exit("Something is missing or came twice.")
print(f"{attempt} connections, one request, the whole answer", file=sys.stderr)
