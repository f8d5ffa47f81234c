"""The whole service with a model on the GPU."""

import http.client
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from tests.conftest import Service, wait_for
from tests.support import admin_client
from tests.support.admin_client import admin
from tests.support.counter_model import expected_text

_READY_S = 90.0


def _text(service: Service, start: int, num_tokens: int, model: str = "counter") -> str:
    with service.openai() as client:
        chunks = client.completions.create(
            model=model,
            prompt=str(start),
            max_tokens=num_tokens,
            temperature=0,
            stream=True,
            timeout=120,
        )
        return "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)


def _stream(service: Service, num_tokens: int) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    body = {"model": "counter", "prompt": "5", "max_tokens": num_tokens, "temperature": 0}
    connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True}))
    return connection.getresponse()


def _wait_until_it_serves(service: Service) -> None:
    admin_client.wait_for_state(service, "counter", "ready", _READY_S)
    assert _text(service, 5, 20) == expected_text(5, 20)


def _free_bytes() -> int:
    import torch

    free, _total = torch.cuda.mem_get_info()
    return int(free)


def test_64_streams_over_http_are_exact(service: Service) -> None:
    starts = [13 * i for i in range(64)]
    with ThreadPoolExecutor(64) as pool:
        texts = list(pool.map(lambda start: _text(service, start, 300), starts))
    assert texts == [expected_text(start, 300) for start in starts]


def test_a_chat_uses_the_template_in_the_folder(service: Service) -> None:
    answer = service.openai().chat.completions.create(
        model="counter", messages=[{"role": "user", "content": "41"}], max_tokens=3, temperature=0
    )
    assert answer.choices[0].message.content == "42 43 44"


def test_cached_prompt_tokens_stand_in_the_usage(service: Service) -> None:
    prompt = expected_text(77, 600)
    cached = []
    for _ in range(2):
        answer = service.openai().completions.create(
            model="counter", prompt=prompt, max_tokens=2, temperature=0
        )
        assert answer.usage is not None
        details = answer.usage.prompt_tokens_details
        cached.append((details.cached_tokens if details else 0) or 0)
    assert cached[1] >= 512


def test_a_closed_stream_frees_its_slot(service: Service) -> None:
    connection = _stream(service, 1900)
    assert connection.read(200)
    connection.close()

    def busy() -> int:
        view = admin_client.model(service, "counter")
        return sum(replica["busy_slots"] for replica in view["replicas"])

    wait_for(lambda: busy() == 0, "the slot is free", 10)
    assert _text(service, 1, 10) == expected_text(1, 10)


def test_the_estimate_covers_what_a_replica_takes(service: Service) -> None:
    """A configured model that sleeps is loaded by its first request."""
    before = _free_bytes()
    assert _text(service, 3, 900, model="asleep") == expected_text(3, 900)
    used = before - _free_bytes()
    view = admin_client.model(service, "asleep")
    (replica,) = view["replicas"]
    estimated = replica["memory_estimated_bytes"]
    print(f"GPU memory: estimated {estimated >> 20} MiB, used {used >> 20} MiB")
    assert 0 < used <= estimated


def test_unloading_gives_all_gpu_memory_back(service: Service) -> None:
    assert _text(service, 3, 5, model="asleep")
    loaded = _free_bytes()
    status, answer = admin(service, "/models/unload", {"name": "asleep", "wait": True})
    assert status == 200, answer
    wait_for(lambda: _free_bytes() > loaded + (200 << 20), "the memory is free again", 20)
    # And it comes back when it is asked for.
    assert _text(service, 8, 20, model="asleep") == expected_text(8, 20)


def test_a_stream_goes_on_when_its_replica_is_killed(service: Service) -> None:
    _wait_until_it_serves(service)
    stream = admin_client.Completion(service, "counter", 1900).read(5)
    (pid,) = service.pids("worker.replica", "counter")
    os.kill(pid, signal.SIGKILL)
    killed_at = time.monotonic()
    assert stream.read().text == expected_text(5, 1900)
    print(f"the stream was done {time.monotonic() - killed_at:.1f} s after the kill")


def test_requests_wait_while_a_killed_replica_starts_again(service: Service) -> None:
    _wait_until_it_serves(service)
    (pid,) = service.pids("worker.replica", "counter")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not service.pids("worker.replica", "counter"), "the replica is dead")
    assert _text(service, 5, 50) == expected_text(5, 50)
