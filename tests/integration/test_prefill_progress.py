"""How far the prompt is read is shown to a waiting client, and disturbs nothing else."""

import http.client
import json
import re
from collections import Counter
from itertools import pairwise
from typing import Any

from simple_websocket import Client

from tests.conftest import Service
from tests.support.counter_model import expected_text, number_token
from tests.support.sse_reader import Answer

_NUM_PROMPTS = 3
_PROMPT_TOKENS = 1500
"""Several steps of the engine each."""


def _body(first: int) -> dict[str, Any]:
    """Long prompts that no cache has, by number of the first one."""
    numbers = range(first, first + _NUM_PROMPTS)
    prompts = [[number_token((n * k) % 1000) for k in range(_PROMPT_TOKENS)] for n in numbers]
    return {"model": "counter", "prompt": prompts, "max_tokens": 5, "temperature": 0}


def _slow_body(first: int) -> dict[str, Any]:
    """One prompt of several steps at any speed: a step reads at most 512 tokens. The demo model's
    cache has none of it."""
    return {"model": "gemma-3-270m", "prompt": list(range(first, first + 1100)), "max_tokens": 1}


def _expected(first: int) -> list[str]:
    numbers = range(first, first + _NUM_PROMPTS)
    return [expected_text((n * (_PROMPT_TOKENS - 1)) % 1000, 5) for n in numbers]


def _lines(service: Service, body: dict[str, Any]) -> list[str]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True}))
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return lines


def test_comments_say_how_far_the_prompt_is_read(service: Service) -> None:
    lines = _lines(service, _slow_body(1000))
    comments = [line for line in lines if line.startswith(": reading")]
    assert comments
    for comment in comments:
        found = re.fullmatch(r": reading the prompt (\d+)%", comment)
        assert found is not None and int(found[1]) <= 100, comment
    # A comment stands alone: no id before it, no blank line behind it.
    for line, after in pairwise(lines):
        assert not (line.startswith("id: ") and after.startswith(":"))
        assert not (line.startswith(":") and after == "")


def test_a_stream_with_comments_can_be_resumed_from_every_event(service: Service) -> None:
    whole = Answer(service, "completions", {**_body(103), "stream": True}).read()
    assert _texts(whole) == _expected(103)
    for num_read, event in enumerate(whole.events[:-1], 1):
        path = f"requests/{whole.request_id}/events"
        rest = Answer(service, path, last_id=event.id).read()
        assert rest.is_done
        whole_again = Counter("".join(e.text for e in whole.events[:num_read]) + rest.text)
        assert whole_again == Counter(whole.text)


def test_frames_say_how_far_the_prompt_is_read(service: Service) -> None:
    ws = Client.connect(f"ws://127.0.0.1:{service.port}/v1/ws")
    request = {"type": "request", "id": "a", "endpoint": "completions", "body": _slow_body(3000)}
    ws.send(json.dumps(request))
    frames: list[dict[str, Any]] = []
    while not frames or frames[-1]["type"] not in ("done", "error"):
        payload = ws.receive(timeout=60)
        assert payload is not None
        frames.append(json.loads(payload))
    ws.close()
    shown = [frame for frame in frames if frame["type"] == "prefill"]
    assert shown, {frame["type"] for frame in frames}
    for frame in shown:
        assert set(frame) == {"type", "id", "fraction"}
        assert 0 < frame["fraction"] <= 1
    assert frames[-1]["type"] == "done"


def test_a_request_of_several_prompts_shows_no_progress(service: Service) -> None:
    """The events do not say which prompt they are about."""
    lines = _lines(service, _body(3))
    assert lines[-2:] == ["data: [DONE]", ""]
    assert not [line for line in lines if "reading the prompt" in line]


def _texts(answer: Answer) -> list[str]:
    texts = [""] * _NUM_PROMPTS
    for event in answer.events:
        chunk = {} if event.data == "[DONE]" else json.loads(event.data)
        for choice in chunk.get("choices", []):
            texts[choice["index"]] += choice["text"]
    return texts
