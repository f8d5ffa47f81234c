"""Load a model while the service runs, show the progress, send a request, unload it.

The file has to be in the model folder of a node. With `auth` on, the key needs the scope admin.

    python load_model.py NAME FILE
"""

import json
import os
import sys

import httpx

client = httpx.Client(
    base_url=os.environ.get("LLMIS_URL", "http://127.0.0.1:8000"),
    headers={"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"},
    timeout=60,
)


def operate(path: str, body: dict) -> None:
    """Run an operation that may take minutes, and print its progress."""
    with client.stream("POST", path, json=body | {"stream": True}) as response:
        if response.is_error:
            sys.exit(json.loads(response.read())["error"]["message"])
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            operation = json.loads(line.removeprefix("data: "))
            if operation["error"]:
                sys.exit(operation["error"]["message"])
            print(f"{operation['fraction']:4.0%} {operation['stage']} {operation['message']}")


if len(sys.argv) != 3:
    print("usage: python load_model.py NAME FILE", file=sys.stderr)
    sys.exit(2)
name, path = sys.argv[1:]
operate("/admin/models/load", {"name": name, "path": path, "context_length": 2048, "slots": 2})
answer = client.post(
    "/v1/completions", json={"model": name, "prompt": "1 2 3", "max_tokens": 5, "temperature": 0}
)
print(f"1 2 3 …{answer.raise_for_status().json()['choices'][0]['text']}")
operate("/admin/models/unload", {"name": name})
