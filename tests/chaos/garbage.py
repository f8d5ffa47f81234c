"""What no client should send. The service refuses it, with a reason where one can be given."""

import json
import random
import socket

from simple_websocket import Client

from tests.chaos.http_client import Connection
from tests.conftest import Service

_REFUSED_BODIES = (
    (b'{"model": "pair", "prompt"', 400),
    (b"\xff\xfe\x00", 400),
    (b"[]", 400),
    (b'{"model": "nope", "prompt": "1"}', 404),
    (b'{"model": "pair", "prompt": "1", "max_tokens": -1}', 400),
    (b'{"model": "pair", "prompt": "1", "temperature": "hot"}', 400),
    (b'{"model": "pair", "prompt": "1", "n": 100000}', 400),
)
_BUSY = (429, 503)


def send(service: Service, rng: random.Random) -> str | None:
    """Send something bad; returns what is wrong with the service's answer. Raises OSError,
    http.client.HTTPException, ConnectionClosed."""
    return rng.choice((_bad_body, _bad_body, _noise, _half_request, _bad_frames))(service, rng)


def _bad_body(service: Service, rng: random.Random) -> str | None:
    body, expected = rng.choice(_REFUSED_BODIES)
    connection = Connection(service)
    try:
        response = connection.post("/v1/completions", body)
        payload = response.read()
    finally:
        connection.close()
    if response.status in (expected, *_BUSY) and json.loads(payload)["error"]["message"]:
        return None
    return f"{body!r} was answered with {response.status} {payload[:200]!r}"


def _noise(service: Service, rng: random.Random) -> str | None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as sock:
        sock.sendall(rng.randbytes(rng.randint(1, 2000)) + b"\r\n\r\n")
        try:
            answer = sock.recv(4096)
        except ConnectionResetError:
            answer = b""  # it closed before it had read all of it
    if not answer or answer.startswith(b"HTTP/1.1 4"):
        return None
    return f"noise was answered with {answer[:200]!r}"


def _half_request(service: Service, rng: random.Random) -> str | None:
    body = json.dumps({"model": "pair", "prompt": "1", "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as sock:
        sock.sendall(request[: rng.randrange(1, len(request) - 1)])
    return None


def _bad_frames(service: Service, rng: random.Random) -> str | None:
    ws = Client.connect(f"ws://127.0.0.1:{service.port}/v1/ws")
    try:
        frames = [rng.randbytes(rng.randint(1, 300)), "{", "[]", '{"type": "request", "id": 7}']
        for frame in frames:
            ws.send(frame)
            answer = json.loads(ws.receive(timeout=60) or "{}")
            if answer.get("type") != "error":
                return f"the frame {frame!r} was answered with {answer}"
        ws.send('{"type": "ping"}')
        answer = json.loads(ws.receive(timeout=60) or "{}")
        return None if answer.get("type") == "pong" else f"ping was answered with {answer}"
    finally:
        if ws.connected:
            ws.close()
