"""Thousands of random and hostile bodies, and some large ones: no internal error, no hang, no
growth."""

import copy
import http.client
import json
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import psutil

from tests.conftest import Service, running_service
from tests.support.hostile_grammars import chained_rules, chained_schema, many_properties

_SEED = 20261123
_NUM_BODIES = 5000
_ALLOWED = {200, 400, 404, 413, 504}
_NUM_CLIENTS = 6
_GROWTH_BYTES = 24 * 2**20
_SIZED_GROWTH_BYTES = 160 * 2**20
"""Half of it are the grammars that are kept."""
_NO_LIMITS = "max_schema_bytes = 8000000\nmax_tools_bytes = 8000000\nmax_schema_parts = 1000000\n"
"""Of the web tier's: what is too large is for the replica to find out."""

_CHAT: dict[str, Any] = {
    "model": "counter",
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "17"}], "name": "ann"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ],
    "max_tokens": 2,
    "timeout_s": 5,
    "temperature": 0,
    "logit_bias": {"5": 1},
    "stop": ["\n"],
    "stream": False,
    "stream_options": {"include_usage": True},
    "logprobs": True,
    "top_logprobs": 2,
    "n": 1,
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "f",
                "description": "d",
                "parameters": {"type": "object", "properties": {"a": {"enum": ["x"]}}},
            },
        }
    ],
    "tool_choice": "auto",
    "metadata": {"a": "b"},
    "chat_template_kwargs": {"enable_thinking": False},
}
_COMPLETION: dict[str, Any] = {
    "model": "counter",
    "prompt": ["17", "18"],
    "max_tokens": 2,
    "timeout_s": 5,
    "temperature": 1,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "seed": 7,
    "stop": "x",
    "logprobs": 1,
    "echo": True,
    "best_of": 1,
    "n": 1,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": False},
    },
}
_GUIDED: dict[str, Any] = {"model": "counter", "prompt": "1", "max_tokens": 3, "timeout_s": 5}
_BASES = [
    ("/v1/chat/completions", _CHAT),
    ("/v1/completions", _COMPLETION),
    ("/v1/completions", {**_GUIDED, "guided_regex": "[a-z]{1,3}"}),
    ("/v1/completions", {**_GUIDED, "guided_grammar": 'start: "a"+'}),
    ("/v1/completions", {**_GUIDED, "guided_json": {"type": "object", "properties": {}}}),
    ("/v1/embeddings", {"model": "counter", "input": "x"}),
    ("/tokenize", {"model": "counter", "prompt": "x"}),
    ("/detokenize", {"model": "counter", "tokens": [1, 2]}),
]
_COSTLY = {"n", "best_of", "max_tokens", "max_completion_tokens", "timeout_s", "model", "stream"}
"""Left as they are most of the time: what they ask for is legal and takes long."""
_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 17, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, 5e-324,
    "", " ", "a", "\x00", "</s>", "<s>", "<stop>", "\ud800", "é" * 50, "😀" * 20, "a" * 5000,
    "{{ 7*7 }}", "{% raise %}", "${x}", "../../etc/passwd", "\r\nX: y", "((((((((((a+)+)+)+",
    "[" * 200, "(?<x>", "\\", [], {}, [[]], [None], [[], {}], {"": ""}, {"type": None},
    {"type": "object", "properties": {"a": {"$ref": "#"}}}, {"$ref": "http://127.0.0.1/x"},
    {"allOf": [{}] * 50}, {"pattern": "(a+)+$"}, {"not": {}}, {"enum": []}, list(range(300)),
    {str(i): i for i in range(300)}, {"x-guidance": 1}, {"type": "image_url"},
]  # fmt: skip
_RAW = [
    b"", b" ", b"null", b"[]", b'"x"', b"{", b"}", b"\xff\xfe", b"\xef\xbb\xbf{}", b"NaN",
    b'{"model": NaN}', b'{"a":1e999}', b"[" * 100_000, b'{"a":' * 50_000, b'{"model":"\\ud800"}',
    b"\x00" * 100, b'{"model":"counter","model":"x"}', b"{" + b'"a":1,' * 20_000 + b'"b":2}',
]  # fmt: skip


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every node below a value."""
    entries: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    for key, inner in entries:
        yield value, key
        yield from _places(inner)


def _mutated(rng: random.Random, base: Any) -> Any:
    body = json.loads(json.dumps(base))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = [p for p in _places(body) if p[1] not in _COSTLY or rng.random() < 0.03]
        if not places:
            break
        container, key = rng.choice(places)
        action = rng.random()
        if action < 0.7:
            container[key] = copy.deepcopy(rng.choice(_VALUES))
        elif action < 0.8:
            del container[key]
        elif action < 0.9 and isinstance(container, dict):
            name = rng.choice(("x", "", "stop", "tools", "input", "\x00"))
            container[name] = copy.deepcopy(rng.choice(_VALUES))
        else:
            container[key] = [container[key]] * rng.choice((2, 20, 200))
    if isinstance(body.get("timeout_s"), int | float) and not body.get("timeout_s"):
        del body["timeout_s"]
    return body


def _raw(rng: random.Random, base: Any) -> bytes:
    """Bytes that are hardly JSON."""
    if rng.random() < 0.5:
        return rng.choice(_RAW)
    payload = bytearray(json.dumps(base).encode())
    for _ in range(rng.randrange(1, 6)):
        payload[rng.randrange(len(payload))] = rng.randrange(256)
    return bytes(payload[: rng.randrange(1, len(payload) + 1)])


def _bodies(number: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(_SEED)
    for _ in range(number):
        path, base = rng.choice(_BASES)
        if rng.random() < 0.15:
            yield path, _raw(rng, base)
        else:
            yield path, json.dumps(_mutated(rng, base)).encode()


def _resident_bytes(service: Service) -> int:
    pids = [*service.pids("gunicorn"), *service.pids("worker.replica", "counter@")]
    assert len(pids) >= 3, "the web tier's two processes and a replica"
    return sum(psutil.Process(pid).memory_info().rss for pid in pids)


def _send_all(service: Service, bodies: list[tuple[str, bytes]]) -> Counter[int]:
    """Send the bodies over one connection; the number of answers by status."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    statuses: Counter[int] = Counter()
    for path, body in bodies:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        statuses[response.status] += 1
        assert response.status in _ALLOWED, (response.status, path, body[:2000], answer[:500])
        if response.status != 200:
            error = json.loads(answer)["error"]
            assert error["message"] and error["type"], body[:500]
    return statuses


def _send_at_once(service: Service, bodies: list[tuple[str, bytes]]) -> Counter[int]:
    with ThreadPoolExecutor(_NUM_CLIENTS) as pool:
        parts = [bodies[i::_NUM_CLIENTS] for i in range(_NUM_CLIENTS)]
        counts = pool.map(_send_all, [service] * _NUM_CLIENTS, parts)
        return sum(counts, Counter())


def test_hostile_bodies(own_service: Service) -> None:
    bodies = list(_bodies(_NUM_BODIES))
    begun = _NUM_BODIES // 4
    statuses = _send_at_once(own_service, bodies[:begun])
    resident_bytes = _resident_bytes(own_service)
    statuses += _send_at_once(own_service, bodies[begun:])
    assert statuses[200] > _NUM_BODIES / 20 and statuses[400] > _NUM_BODIES / 4, statuses
    assert _resident_bytes(own_service) - resident_bytes < _GROWTH_BYTES
    assert "Traceback" not in own_service.log("web")
    client = own_service.openai()
    text = client.completions.create(model="counter", prompt="17", max_tokens=3).choices[0].text
    assert text == " 18 19 20"


def _sized_bodies() -> Iterator[dict[str, Any]]:
    """One cost a replica its life, its memory or seconds of its time."""
    yield {"guided_json": chained_schema(3000)}
    yield {"guided_json": chained_schema(3000, is_wrapped=True)}
    yield {"guided_grammar": chained_rules(5000)}
    yield {"guided_regex": "a?" * 12_000}
    yield {"guided_regex": "a?" * 12_001}
    yield {"guided_regex": "a?" * 100_000}
    yield {"guided_regex": "a" * 200_000}
    yield {"guided_regex": "((((a{100}){100}){100}){100})"}
    yield {"guided_json": many_properties(3000)}
    yield {"guided_json": {"type": "string", "pattern": "[" * 1_000_000}}
    yield {"guided_json": {"type": "integer", "multipleOf": 99_991}}
    yield {"guided_choice": [f"{i} " * 1000 for i in range(256)]}


def _sized_requests() -> list[tuple[str, bytes]]:
    bodies = [{**_GUIDED, "timeout_s": 60, **body} for body in _sized_bodies()]
    requests = [("/v1/completions", json.dumps(body).encode()) for body in bodies]
    parameters = [chained_schema(3000), many_properties(3000), {"required": 5}, {"enum": 5}]
    for i, schema in enumerate(parameters):
        function = {"name": "f", "parameters": schema}
        chat = {
            **_CHAT,
            "tools": [{"type": "function", "function": function}],
            "tool_choice": "required",
            "timeout_s": 60,
            "seed": i,
        }
        requests.append(("/v1/chat/completions", json.dumps(chat).encode()))
    return requests


def _count_until(is_over: Event, service: Service) -> int:
    """Stream numbers all the while; the number of streams, each of which was exact."""
    client, num_streams = service.openai(), 0
    while not is_over.wait(0.1):  # the rest of the processor is for the grammars
        stream = client.completions.create(
            model="counter", prompt="17", max_tokens=200, temperature=0, stream=True
        )
        text = "".join(chunk.choices[0].text for chunk in stream if chunk.choices)
        assert text == "".join(f" {number}" for number in range(18, 218))
        num_streams += 1
    return num_streams


def test_large_grammars_harm_nobody_else(tmp_path: Path) -> None:
    with running_service(tmp_path, extra=_NO_LIMITS) as service, ThreadPoolExecutor(1) as pool:
        _send_all(
            service, [("/v1/completions", json.dumps({**_GUIDED, "guided_regex": "1"}).encode())]
        )
        replicas, resident_bytes = service.pids("worker.replica"), _resident_bytes(service)
        is_over = Event()
        counting = pool.submit(_count_until, is_over, service)
        try:
            statuses = _send_at_once(service, _sized_requests())
        finally:
            is_over.set()
        assert counting.result() > 0
        assert set(statuses) <= {200, 400} and statuses[400] > 6, statuses
        assert service.pids("worker.replica") == replicas, "none has died"
        assert _resident_bytes(service) - resident_bytes < _SIZED_GROWTH_BYTES
        assert "Traceback" not in service.log("web")
