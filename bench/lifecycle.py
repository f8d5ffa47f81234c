"""Loading and unloading, measured: replicas, time to ready, requests under a changing service."""

import http.client
import json
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from bench import measure, scenarios, servers
from bench.measure import Numbers
from bench.processes import wait_for_quiet
from bench.scenarios import Load
from bench.servers import ServedModel, Server
from tests.support.counter_model import expected_text

_CLIENTS = 8
_CHURN_S = 30.0


def post(server: Server, path: str, body: dict[str, object]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def _admin(server: Server, action: str, **body: object) -> None:
    """Raises RuntimeError when the service refuses."""
    status, answer = post(server, f"/admin/models/{action}", {"wait": True, **body})
    if status != 200:
        raise RuntimeError(f"{action} failed: {answer}")


def replicas(
    model: ServedModel, load: Load, rounds: int, say: Callable[[str], None]
) -> dict[str, list[Numbers]]:
    """The same load on one replica and on two, in turns, within one running service."""
    found: dict[str, list[Numbers]] = {"1 replica": [], "2 replicas": []}
    with servers.llmis(model) as server:
        for number in range(1, rounds + 1):
            for label, count in (("1 replica", 1), ("2 replicas", 2)):
                _admin(server, "unload", name=model.name)
                _admin(server, "load", name=model.name, replicas=count)
                measure.run_load(_warm_up(count).plan(model, server))
                wait_for_quiet()
                result = measure.run_load(load.plan(model, server))
                numbers = measure.numbers(result, scenarios.average_tokens)
                found[label].append(numbers)
                say(f"  round {number}, {label}: {numbers.tokens_per_s:,.1f} tokens/s")
    return found


def _warm_up(count: int) -> Load:
    return Load("warm-up", [["1"]] * (4 * count), max_tokens=4, counts=False)


def time_to_ready(
    models: list[ServedModel], rounds: int, say: Callable[[str], None]
) -> dict[str, dict[str, list[float]]]:
    """Seconds from asking for a load to ready, and from starting llama.cpp's server to healthy."""
    found: dict[str, dict[str, list[float]]] = {}
    for model in models:
        by_server: dict[str, list[float]] = {"llmis": [], "llama.cpp": []}
        with servers.llmis(model) as server:
            _admin(server, "unload", name=model.name)
            for _ in range(rounds):
                wait_for_quiet()
                started = time.monotonic()
                _admin(server, "load", name=model.name)
                by_server["llmis"].append(time.monotonic() - started)
                _admin(server, "unload", name=model.name)
                wait_for_quiet()
                started = time.monotonic()
                with servers.llama_server(model):
                    by_server["llama.cpp"].append(time.monotonic() - started)
        found[model.name] = by_server
        medians = {name: statistics.median(of_server) for name, of_server in by_server.items()}
        say(f"  {model.name}: " + ", ".join(f"{n} {s:.2f} s" for n, s in medians.items()))
    return found


@dataclass
class Churn:
    """What clients saw while models came and went."""

    requests: int = 0
    wrong: int = 0
    loads: int = 0
    unloads: int = 0
    errors: list[str] = field(default_factory=list)


def churn(model: ServedModel, say: Callable[[str], None]) -> dict[str, object]:
    """Constant load on a configured model, which itself is unloaded, and others come and go."""
    seen, lock, is_over = Churn(), threading.Lock(), threading.Event()

    def client(server: Server, start: int) -> None:
        while not is_over.is_set():
            body = {"model": model.name, "prompt": str(start), "max_tokens": 200, "temperature": 0}
            status, answer = post(server, "/v1/completions", body)
            with lock:
                seen.requests += 1
                if status != 200:
                    seen.errors.append(f"{status}: {answer}")
                elif answer["choices"][0]["text"] != expected_text(start, 200):
                    seen.wrong += 1

    with servers.llmis(model) as server:
        threads = [threading.Thread(target=client, args=(server, 90 * n)) for n in range(_CLIENTS)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + _CHURN_S
        try:
            while time.monotonic() < deadline:
                path = model.path.name
                _admin(server, "load", name="other", path=path, context_length=512, slots=2)
                _admin(server, "unload", name="other")
                _admin(server, "unload", name=model.name)
                seen.loads, seen.unloads = seen.loads + 1, seen.unloads + 2
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
    say(
        f"  {seen.requests} requests, {len(seen.errors)} failed, {seen.wrong} wrong; "
        f"{seen.loads} loads over the API, {seen.unloads} unloads"
    )
    return asdict(seen)
