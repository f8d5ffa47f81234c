"""Load a model while the service runs, watch how it comes, ask it something, unload it.

The file lies in the model folder of a node. The key must be an admin's where keys are checked.

    python load_model.py small small.Q4_K_M.gguf
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
    """Do what may take minutes, and say how far it is."""
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


name, path = sys.argv[1:]
operate("/admin/models/load", {"name": name, "path": path, "context_length": 2048, "slots": 2})
answer = client.post(
    "/v1/completions", json={"model": name, "prompt": "1 2 3", "max_tokens": 5, "temperature": 0}
)
print(f"1 2 3 …{answer.raise_for_status().json()['choices'][0]['text']}")
operate("/admin/models/unload", {"name": name})
