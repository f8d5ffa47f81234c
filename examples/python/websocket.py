"""Several concurrent requests over one WebSocket.

The example cuts its connection during the answers and continues over another one: it resumes
accepted requests, repeats the others, and compares its texts with the answers that the service has
kept.

    python websocket.py "1 2 3" "10 20 30" "500"
"""

import json
import os
import socket
import sys
import time
import uuid
from dataclasses import dataclass, field

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

URL = os.environ.get("LLMIS_URL", "http://127.0.0.1:8000")
HEADERS = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"}
MODEL = os.environ.get("MODEL", "gemma-3-270m")


@dataclass
class Request:
    prompt: str
    idempotency_key: str = field(default_factory=lambda: str(uuid.uuid4()))
    request_id: str = ""
    last_event_id: str = ""
    text: str = ""
    is_done: bool = False

    def frame(self, name: str) -> dict[str, object]:
        """The frame that begins the request, or resumes it."""
        if self.last_event_id:
            return {"type": "resume", "id": name, "last_event_id": self.last_event_id}
        body = {"model": MODEL, "prompt": self.prompt, "max_tokens": 200, "ignore_eos": True}
        return {
            "type": "request",
            "id": name,
            "endpoint": "completions",
            "body": body,
            "idempotency_key": self.idempotency_key,
        }

    def take(self, frame: dict) -> None:
        """Process a frame from the service."""
        self.last_event_id = frame.get("event_id", self.last_event_id)
        match frame["type"]:
            case "accepted":
                self.request_id = frame["request_id"]
            case "chunk":
                self.text += frame["data"]["choices"][0]["text"]
            case "done":
                self.is_done = True
            case "error":
                sys.exit(frame["error"]["message"])


prompts = sys.argv[1:] or ["1 2 3", "10 20 30", "500"]
requests = {str(number): Request(prompt) for number, prompt in enumerate(prompts)}


def converse(connection: ClientConnection, *, is_cut: bool) -> None:
    open_requests = {name: r for name, r in requests.items() if not r.is_done}
    for name, request in open_requests.items():
        connection.send(json.dumps(request.frame(name)))
    while not all(request.is_done for request in open_requests.values()):
        frame = json.loads(connection.recv())
        requests[frame["id"]].take(frame)
        if is_cut and frame["type"] == "chunk":
            print(f"cut after {frame['event_id']}", file=sys.stderr)
            connection.socket.shutdown(socket.SHUT_RDWR)
            return


for attempt in range(1, 11):
    try:
        with connect(URL.replace("http", "ws", 1) + "/v1/ws", additional_headers=HEADERS) as ws:
            converse(ws, is_cut=attempt == 1)
    except (OSError, ConnectionClosed) as error:
        print(f"lost the connection: {error}", file=sys.stderr)
        time.sleep(0.5)
    if all(request.is_done for request in requests.values()):
        break
else:
    sys.exit("The service cannot be reached.")

for request in requests.values():
    print(f"{request.prompt} …{request.text}")
    kept = httpx.get(f"{URL}/v1/requests/{request.request_id}", headers=HEADERS).json()
    if request.text != kept["answer"]["choices"][0]["text"]:
        sys.exit("Something is missing or came twice.")
print(f"{attempt} connections, {len(requests)} whole answers", file=sys.stderr)
