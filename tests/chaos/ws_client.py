"""A client with several requests on one WebSocket connection, some of which it cancels."""

import json
import random

from simple_websocket import Client

from tests.chaos.asks import Answer, Ask
from tests.conftest import Service

_SILENCE_S = 60.0


def converse(service: Service, asks: list[Ask], answers: list[Answer], rng: random.Random) -> None:
    """Send all requests and read until each has ended. Raises OSError, ConnectionClosed."""
    ws = Client.connect(f"ws://127.0.0.1:{service.port}/v1/ws")
    try:
        _send_all(ws, asks, rng)
        is_open = {str(i) for i in range(len(asks))}
        cancels_at = rng.randint(1, 20) if rng.random() < 0.3 else 0
        num_frames = 0
        while is_open:
            frame = ws.receive(timeout=_SILENCE_S)
            if frame is None:
                for frame_id in is_open:
                    answers[int(frame_id)].is_hung = True
                return
            num_frames += 1
            if num_frames == cancels_at and "0" in is_open:
                answers[0].was_cancelled = True
                ws.send(json.dumps({"type": "cancel", "id": "0"}))
            message = json.loads(frame)
            if message["id"] in is_open and _take(message, answers[int(message["id"])]):
                is_open.discard(message["id"])
    finally:
        if ws.connected:
            ws.close()


def _send_all(ws: Client, asks: list[Ask], rng: random.Random) -> None:
    for i, ask in enumerate(asks):
        if rng.random() < 0.1:
            ws.send(rng.randbytes(rng.randint(1, 200)))
        body = ask.body(stream=True)
        frame = {"type": "request", "id": str(i), "endpoint": "completions", "body": body}
        ws.send(json.dumps(frame))


def _take(message: dict[str, object], answer: Answer) -> bool:
    """True when the request has ended."""
    kind = message["type"]
    if kind == "chunk":
        answer.add(message["data"])  # type: ignore[arg-type]
    elif kind == "done":
        answer.is_done = True
    elif kind == "cancelled":
        answer.is_left = True
    elif kind == "error":
        answer.error = message["error"]  # type: ignore[assignment]
    return kind in ("done", "cancelled", "error")
