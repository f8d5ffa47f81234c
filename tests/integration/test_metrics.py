"""`/metrics` of a real service: what is counted, that it is right, and what it must never do."""

import http.client
import json
import os
import random
import signal
import string
import subprocess
import urllib.request
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import msgspec
import pytest
from simple_websocket import Client

from bench import measure
from bench.load import Plan
from bench.sse import Stream
from shared import names
from tests.conftest import ROOT, Service, running_service, wait_for
from tests.support.admin_client import Completion, admin, load, unload
from tests.support.metrics_page import Page, wait_for_more
from tests.support.paused_replica import stopped
from tests.support.prometheus import binary
from tests.support.sse_reader import Answer

_BODY = {"model": "counter", "prompt": "5", "max_tokens": 20, "temperature": 0}
_MAX_OPEN = 12


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    more = f"max_open_requests = {_MAX_OPEN}"
    with running_service(tmp_path_factory.mktemp("llmis"), extra=more) as running:
        yield running


def _post(service: Service, path: str, body: Any) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.request("POST", path, body if isinstance(body, str) else json.dumps(body))
    with connection.getresponse() as response:
        response.read()
        return response.status


def _counted(service: Service, before: Page, *, number: int = 1, **labels: str) -> Page:
    """Requests that have ended so, and no others have."""
    page = wait_for_more(service, before, number, "llmis_requests_total", **labels)
    total = "llmis_requests_total"
    assert page.value(total) == before.value(total) + number, page.samples[total]
    return page


def test_whole_answers_and_streams(service: Service) -> None:
    before = Page.of(service)
    assert _post(service, "/v1/completions", _BODY) == 200
    assert Completion(service, "counter", 30).read().is_done
    finished = {"model": "counter", "outcome": "finished", "finish_reason": "length"}
    page = _counted(service, before, number=2, **finished)
    for name, by in {
        "prompt_tokens_total": 4,
        "generation_tokens_total": 50,
        "request_generation_tokens_sum": 50,
        "request_prompt_tokens_count": 2,
        "time_to_first_token_seconds_count": 2,
        "request_queue_time_seconds_count": 2,
        "request_prefill_time_seconds_count": 2,
        "request_decode_time_seconds_count": 2,
        "e2e_request_latency_seconds_count": 2,
    }.items():
        assert _added(page, before, name) == by, name
    lag = "llmis_stream_lag_seconds"
    assert page.value(f"{lag}_count") > before.value(f"{lag}_count")
    assert page.value(f"{lag}_sum") > before.value(f"{lag}_sum")


def test_tokenizing(service: Service) -> None:
    before = Page.of(service)
    assert _post(service, "/tokenize", {"model": "counter", "prompt": "5"}) == 200
    _counted(service, before, model="counter", outcome="finished", finish_reason="")


def test_requests_of_a_websocket(service: Service) -> None:
    before = Page.of(service)
    ws = Client.connect(f"ws://127.0.0.1:{service.port}/v1/ws")

    def ask(frame_id: str, **body: Any) -> None:
        frame = {"type": "request", "id": frame_id, "endpoint": "completions"}
        frame["request_id"] = f"metrics-{frame_id}"
        ws.send(json.dumps({**frame, "body": {**_BODY, **body}}))

    def read_to(kind: str) -> None:
        while (frame := json.loads(ws.receive(timeout=30) or "{}"))["type"] != kind:
            assert frame["type"] != "error", frame

    ask("a")
    read_to("done")
    page = _counted(service, before, outcome="finished", finish_reason="length")
    replica = _replica(service)
    ask("b", max_tokens=2000)
    read_to("chunk")
    with stopped(replica):
        ws.send(json.dumps({"type": "cancel", "id": "b"}))
        flag = names.cancel_key("metrics-b")
        wait_for(lambda: service.redis.exists(flag), "it is to be cancelled")
    read_to("cancelled")
    page = _counted(service, page, outcome="cancelled")
    ask("c", model="nope")
    assert json.loads(ws.receive(timeout=30) or "{}")["error"]["code"] == "model_not_found"
    page = _counted(service, page, model="", outcome="rejected")
    ws.close()
    assert _added(page, before, "cancellations_total", stage="decode", model="counter") == 1
    assert _added(page, before, "rejections_total", reason="model_not_found", model="") == 1


def _replica(service: Service) -> int:
    """Its process. A test that stops it looks for it before: a stream is soon over."""
    (pid,) = service.pids("worker.replica", "counter@")
    return pid


def _added(page: Page, before: Page, name: str, **labels: str) -> float:
    return page.value(f"llmis_{name}", **labels) - before.value(f"llmis_{name}", **labels)


def test_one_that_is_cancelled_by_its_id(service: Service) -> None:
    before, replica = Page.of(service), _replica(service)
    stream = Answer(service, "completions", {**_BODY, "max_tokens": 2000, "stream": True}).read(1)
    with stopped(replica):
        assert _post(service, f"/v1/requests/{stream.request_id}/cancel", {}) == 200
    stream.read()
    page = _counted(service, before, model="counter", outcome="cancelled")
    assert _added(page, before, "cancellations_total", stage="decode") == 1


def test_who_comes_back_is_not_counted_again(service: Service) -> None:
    before, replica = Page.of(service), _replica(service)
    first = Answer(service, "completions", {**_BODY, "max_tokens": 2000, "stream": True}).read(2)
    with stopped(replica):
        first.close()
        page = _counted(service, before, model="counter", outcome="client_gone")
    assert _added(page, before, "cancellations_total", stage="decode") == 1
    path = f"requests/{first.request_id}/events"
    assert Answer(service, path, last_id=first.last_id).read().events[-1].data == "[DONE]"
    later = wait_for_more(service, page, 1, "llmis_resumes_total", model="counter")
    assert later.value("llmis_requests_total") == page.value("llmis_requests_total")
    assert Answer(service, "requests/nobody/events", last_id="nobody:3").status == 404
    assert Page.of(service).value("llmis_rejections_total") == page.value("llmis_rejections_total")


def test_rejections_by_reason(service: Service) -> None:
    page = Page.of(service)
    for body, model, reason in (
        ({**_BODY, "model": "nope"}, "", "model_not_found"),
        ("{", "", "invalid_request_error"),
        ({**_BODY, "n": "x"}, "", "invalid_request_error"),
        ({**_BODY, "min_tokens": 30}, "counter", "invalid_request_error"),
    ):
        before = page
        assert _post(service, "/v1/completions", body) >= 400
        page = _counted(service, before, outcome="rejected", model=model)
        assert _added(page, before, "rejections_total", model=model, reason=reason) == 1, body


def test_one_that_fails(service: Service) -> None:
    before = Page.of(service)
    assert _post(service, "/v1/completions", {**_BODY, "prompt": "5 " * 3000}) == 400
    page = _counted(service, before, model="counter", outcome="failed")
    assert _added(page, before, "failures_total", reason="context_length_exceeded") == 1


def test_waiting_limits_and_who_takes_over(service: Service) -> None:
    """A replica stands still: requests wait for it, then a key has too many of them."""
    before = Page.of(service)
    (pid,) = service.pids("worker.replica", "counter-small@")
    os.kill(pid, signal.SIGSTOP)
    try:
        body = {**_BODY, "model": "counter-small", "stream": True}
        asked = [_raw(service, body) for _ in range(_MAX_OPEN)]
        wait_for(lambda: _oldest(service) > 0.5, "the oldest one gets older")
        assert Page.of(service).value("llmis_streams") >= _MAX_OPEN
        assert Page.of(service).value("llmis_num_requests_waiting", model="counter-small") > 5
        assert Answer(service, "completions", body, owner="many").status == 429
    finally:
        os.kill(pid, signal.SIGCONT)
    page = wait_for_more(service, before, 1, "llmis_rate_limit_hits_total", limit="open")
    assert _added(page, before, "rejections_total", reason="rate_limit_exceeded") == 1
    for connection in asked:
        assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
    wait_for(lambda: _oldest(service) == 0, "nobody waits")
    wait_for(lambda: Page.of(service).value("llmis_streams") == 0, "all streams have ended")
    assert pid in service.pids("worker.replica", "counter-small@")


def _raw(service: Service, body: Any) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=120)
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"Authorization": "Bearer many"}
    )
    return connection


def _oldest(service: Service) -> float:
    return Page.of(service).value("llmis_oldest_waiting_seconds", model="counter-small")


def test_a_failover(own_service: Service) -> None:
    assert load(own_service, "long", context_length=8192)[0] == 200
    before = Page.of(own_service)
    (replica,) = own_service.pids("worker.replica", "long@")
    stream = Completion(own_service, "long", 8000).read(2)
    os.kill(replica, signal.SIGKILL)
    assert stream.read().is_done
    wait_for_more(own_service, before, 1, "llmis_failovers_total", model="long")


def test_no_client_can_make_series(service: Service) -> None:
    generator = random.Random(7)

    def word() -> str:
        return "".join(generator.choices(string.ascii_uppercase, k=12))

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        headers = {"x-request-id": word(), "Authorization": f"Bearer {word()}", word(): word()}
        for _ in range(number):
            for method, path, body in (
                ("POST", "/v1/completions", json.dumps({**_BODY, "model": word()})),
                ("POST", "/tokenize", json.dumps({"model": word(), "prompt": word()})),
                ("GET", f"/{word()}/{word()}?{word()}={word()}", ""),
                (word(), "/v1/completions", ""),
                ("GET", f"/v1/requests/{word()}", ""),
            ):
                connection.request(method, path, body, headers)
                connection.getresponse().read()

    ask(1)
    before = Page.of(service)
    ask(200)
    page = wait_for_more(service, before, 400, "llmis_rejections_total", reason="model_not_found")
    assert page.num_series == before.num_series
    assert page.label_values("model") == {"", "counter", "counter-small"}


def test_quantiles_are_those_that_clients_measure(service: Service) -> None:
    """A client measures what the server does and the way to it: hardly ever less. Where it has to
    wait for a core it measures more, and several chunks come to it at once: of gaps the mean, in
    which that evens out, is compared."""
    before = Page.of(service)
    body = {**_BODY, "max_tokens": 100, "stream": True, "stream_options": {"include_usage": True}}
    streams = [[msgspec.Raw(msgspec.json.encode(body))] * 40 for _ in range(4)]
    done = measure.run_load(
        Plan(port=service.port, server_pid=service.process.pid, streams=streams)
    ).streams
    page = _counted(service, before, number=160, outcome="finished", model="counter")
    measured = {
        "time_to_first_token": [one.chunk_at[0] - one.sent_at for one in done],
        "e2e_request_latency": [one.ended_at - one.sent_at for one in done],
    }
    for name, values in measured.items():
        for q in (0.5, 0.95):
            found, lower, upper = page.quantile(f"llmis_{name}_seconds", q, before, model="counter")
            clients = measure.quantile(values, q)
            print(f"{name} p{100 * q:g}: {1000 * found:.2f} ms, clients {1000 * clients:.2f} ms")
            assert 0.8 * lower <= clients, (name, q, found, clients)
            assert q > 0.5 or clients <= 4 * upper, (name, q, found, clients)
        assert _added(page, before, f"{name}_seconds_count") == len(done) == 160
    gaps = [gap for one in done for gap in _gaps(one)]
    assert _added(page, before, "inter_token_latency_seconds_count") == len(gaps)
    mean = _added(page, before, "inter_token_latency_seconds_sum") / len(gaps)
    print(f"inter_token_latency: {1000 * mean:.2f} ms, clients {1000 * fmean(gaps):.2f} ms")
    assert mean / 2 <= fmean(gaps) <= 2 * mean


def _gaps(stream: Stream) -> Iterator[float]:
    later = zip(stream.chunk_at, stream.chunk_at[1:], stream.chunk_texts[1:], strict=False)
    for before, at, text in later:
        yield (at - before) / text.count(" ")


def test_a_model_that_is_unloaded_has_no_state(service: Service) -> None:
    assert load(service, "passing")[0] == 200
    gauges = (
        "llmis_slots",
        "llmis_replicas",
        "llmis_replica_memory_bytes",
        "llmis_engine_steps_total",
    )

    def shown() -> list[str]:
        page = Page.of(service)
        return [
            name for name in gauges for has, _ in page.samples[name] if has["model"] == "passing"
        ]

    wait_for(lambda: set(shown()) == set(gauges), "the model is shown")
    assert Page.of(service).value("llmis_models_loaded") == 3
    assert unload(service, "passing")[0] == 200
    wait_for(lambda: not shown(), "the model is not shown")


def test_promtool_finds_nothing_wrong(service: Service) -> None:
    checked = subprocess.run(
        [binary("promtool"), "check", "metrics"],
        input=Page.of(service).text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_every_metric_is_in_the_documentation(service: Service) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    shown = {line.split()[2] for line in Page.of(service).text.splitlines() if "# TYPE" in line}
    assert len(shown) > 25
    assert not {name for name in shown if f"`{name}`" not in text}


def test_without_redis_it_says_so(own_service: Service) -> None:
    before = Page.of(own_service)
    assert before.value("llmis_redis_up") == 1
    (pid,) = own_service.pids("-server", "redis") or own_service.pids("valkey-server")
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: Page.of(own_service).value("llmis_redis_up") == 0, "Redis is away")
        wait_for(lambda: "llmis_slots" not in Page.of(own_service).samples, "the state is unknown")
        # A process's own counts would look like counters that began again.
        assert not Page.of(own_service).samples["llmis_http_request_total"]
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: Page.of(own_service).value("llmis_slots") > 0, "it is back")
    assert Page.of(own_service).value("llmis_redis_up") == 1
    after = Page.of(own_service)
    for name in ("requests_total", "http_request_total"):
        assert _added(after, before, name) >= 0, "counters do not go back"


def test_counters_outlive_web_processes(own_service: Service) -> None:
    before = Page.of(own_service)
    for done in range(1, 4):
        assert _post(own_service, "/v1/completions", _BODY) == 200
        old = admin(own_service, "/web")[1]["pid"]
        assert admin(own_service, "/web/restart", {})[0] == 200
        wait_for(lambda old=old: old not in own_service.pids("app.wsgi"), "it has ended", 60)
        page = Page.of(own_service)
        assert _added(page, before, "requests_total", outcome="finished") == done
        assert _added(page, before, "e2e_request_latency_seconds_count") == done


def test_a_web_process_that_is_killed_loses_no_more_than_a_beat(own_service: Service) -> None:
    before = Page.of(own_service)
    assert _post(own_service, "/v1/completions", _BODY) == 200
    # A scrape writes down what was counted, as a beat does.
    _counted(own_service, before, outcome="finished")
    old = admin(own_service, "/web")[1]["pid"]
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: old not in own_service.pids("app.wsgi"), "it has ended")
    page = wait_for(lambda: _page_or_none(own_service), "another one answers", 60)
    assert _added(page, before, "requests_total", outcome="finished") == 1


def _page_or_none(service: Service) -> Page | None:
    try:
        return Page.of(service)
    except OSError:
        return None


def test_a_scrape_with_an_odd_accept_header(service: Service) -> None:
    asked = urllib.request.Request(
        f"{service.url}/metrics", headers={"Accept": "application/x; q=2"}
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
