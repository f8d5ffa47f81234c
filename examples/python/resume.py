"""Server-sent events by hand, with httpx. The id of the last event is enough to get exactly the
rest: after a lost connection, or after a restart of the service.

The example cuts its first connections itself, each after one event, and compares its text with the
answer that the service has kept.

    python resume.py "1 2 3"
"""

import json
import os
import sys
import time
import uuid
from collections.abc import Iterator

import httpx

CUTS = 3

client = httpx.Client(
    base_url=os.environ.get("LLMIS_URL", "http://127.0.0.1:8000"),
    headers={"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"},
    timeout=60,
)


def events(response: httpx.Response) -> Iterator[tuple[str, str]]:
    """Id and data of each whole event. Lines that begin with a colon are comments."""
    event_id = data = ""
    for line in response.iter_lines():
        if line.startswith("id: "):
            event_id = line.removeprefix("id: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
        elif not line and data:
            yield event_id, data
            data = ""


body = {
    "model": os.environ.get("MODEL", "gemma-3-270m"),
    "prompt": " ".join(sys.argv[1:]) or "1 2 3",
    "max_tokens": 200,
    "ignore_eos": True,
    "stream": True,
}
# With the key the request is safe to repeat when the connection is lost before the first event.
headers = {"Idempotency-Key": str(uuid.uuid4())}
text = ""


def read(is_cut: bool) -> str:
    """Read on until the end, or for one event. Return the request's id."""
    global text
    with client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        if response.is_error:
            sys.exit(response.read().decode())
        for event_id, data in events(response):
            headers["Last-Event-ID"] = event_id
            if data == "[DONE]":
                break
            chunk = json.loads(data)
            if "error" in chunk:
                sys.exit(chunk["error"]["message"])
            text += chunk["choices"][0]["text"]
            if is_cut:
                raise httpx.ReadError("cut by the example")
        return response.headers["x-request-id"]


for attempt in range(1, 11):
    try:
        request_id = read(is_cut=attempt <= CUTS)
        break
    except httpx.TransportError as error:
        print(f"{len(text)} characters, then: {error}", file=sys.stderr)
        time.sleep(0.5)
else:
    sys.exit("The service cannot be reached.")

print(text)
kept = client.get(f"/v1/requests/{request_id}").json()
if text != kept["answer"]["choices"][0]["text"]:
    sys.exit("Something is missing or came twice.")
print(f"{attempt} connections, one request, the whole answer", file=sys.stderr)
