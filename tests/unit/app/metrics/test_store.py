"""What web processes count together in Redis: each increment once, whatever happens to Redis."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from app.metrics.store import CounterStore, SharedValue
from app.metrics.text_format import metrics_text
from tests.support.metrics_page import Page

_DESCRIPTIONS = {
    "requests": ("counter", "Requests."),
    "latency": ("histogram", "Seconds."),
    "streams": ("gauge", "Streams."),
}


class _Process:
    """The metrics of one web process."""

    def __init__(self, master_id: str = "master", model: str = "m") -> None:
        self.store = CounterStore(master_id)
        labels, model_labels = (("model", "le"), ("model",))
        self.requests = self._value("counter", "requests", "_total", model_labels, (model,))
        self.buckets = [
            self._value("histogram", "latency", "_bucket", labels, (model, bound))
            for bound in ("0.1", "2.5", "10.0", "+Inf")
        ]
        self.total_s = self._value("histogram", "latency", "_sum", model_labels, (model,))
        self.streams = self._value("gauge", "streams", "", (), ())

    def _value(
        self, kind: str, family: str, suffix: str, labels: tuple[str, ...], values: tuple[str, ...]
    ) -> SharedValue:
        # As prometheus_client calls it.
        return SharedValue(self.store, kind, family, family + suffix, labels, values, "Help.")

    def page(self, client: redis.Redis) -> Page:
        return Page(metrics_text(self.store.sums(client), _DESCRIPTIONS))

    def num_requests(self, client: redis.Redis) -> float:
        return self.page(client).value("requests_total", model="m")


class _Intercepted:
    """A client that does something after the server has run the script."""

    def __init__(self, client: redis.Redis, then: Callable[[], Any]) -> None:
        self._client, self._then = client, then

    def eval(self, *arguments: Any) -> Any:
        answer = self._client.eval(*arguments)
        self._then()
        return answer


def _lose_the_answer() -> None:
    raise redis.ConnectionError("the server closed the connection")


def test_processes_add_up(server: redis.Redis) -> None:
    first, second = _Process(), _Process()
    for process, number in ((first, 2), (second, 3)):
        process.requests.inc(number)
        process.buckets[1].inc(number)
        process.buckets[3].inc(number)
        process.total_s.inc(1000.012 * number)
        process.streams.set(number)
        process.store.flush(server)
    page = first.page(server)
    assert page.text == second.page(server).text
    assert page.value("requests_total", model="m") == 5
    assert page.value("streams") == 5
    buckets = [(has["le"], value) for has, value in page.samples["latency_bucket"]]
    assert buckets == [("0.1", 0), ("2.5", 5), ("10.0", 5), ("+Inf", 10)]
    assert page.value("latency_count") == 10
    assert page.value("latency_sum") == pytest.approx(5 * 1000.012)
    assert "# HELP requests_total Requests.\n# TYPE requests_total counter\n" in page.text
    assert "# TYPE latency histogram\n" in page.text


def test_series_are_there_before_anything_is_counted(server: redis.Redis) -> None:
    process = _Process()
    process.store.flush(server)
    page = process.page(server)
    assert page.samples["requests_total"] == [({"model": "m"}, 0)]
    assert len(page.samples["latency_bucket"]) == 4


def test_labels_are_escaped(server: redis.Redis) -> None:
    process = _Process(model='a"b\\c\nd')
    process.store.flush(server)
    text = metrics_text(process.store.sums(server), _DESCRIPTIONS)
    assert r'requests_total{model="a\"b\\c\nd"} 0.0' in text


def test_families_of_another_version_are_left_out(server: redis.Redis) -> None:
    process = _Process()
    process.store.flush(server)
    assert metrics_text(process.store.sums(server), {}) == ""


def test_a_batch_whose_answer_was_lost_is_counted_once(server: redis.Redis) -> None:
    process = _Process()
    process.requests.inc(3)
    losing = _Intercepted(server, _lose_the_answer)
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            process.store.flush(losing)  # type: ignore[arg-type]
        process.requests.inc(1)
    process.store.flush(server)
    assert process.num_requests(server) == 3, "the same batch was sent three times"
    process.store.flush(server)
    assert process.num_requests(server) == 5


def test_a_batch_that_two_greenlets_send_is_counted_once(server: redis.Redis) -> None:
    process = _Process()
    process.requests.inc(3)

    def count_and_flush() -> None:
        process.requests.inc(1)
        process.store.flush(server)

    process.store.flush(_Intercepted(server, count_and_flush))  # type: ignore[arg-type]
    assert process.num_requests(server) == 3
    process.store.flush(server)
    assert process.num_requests(server) == 4


def test_what_is_counted_while_redis_is_away_is_added_later(
    server: redis.Redis, absent: redis.Redis
) -> None:
    process = _Process()
    for _ in range(3):
        process.requests.inc(1)
        with pytest.raises(redis.ConnectionError):
            process.store.flush(absent)
    process.store.flush(server)
    process.store.flush(server)
    assert process.num_requests(server) == 3


def test_a_full_redis_gets_nothing_until_it_has_memory(
    server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    process = _Process()
    process.requests.inc(1)
    process.store.flush(server)
    server.config_set("maxmemory", 1)
    for _ in range(2):
        process.requests.inc(1)
        process.store.flush(server)
    assert process.num_requests(server) == 1
    assert len(caplog.records) == 1, "one line an outage"
    server.config_set("maxmemory", 0)
    process.store.flush(server)
    process.store.flush(server)
    assert process.num_requests(server) == 3


def test_after_a_loss_of_data_all_series_are_there_again(server: redis.Redis) -> None:
    process = _Process()
    process.buckets[1].inc(1)
    process.store.flush(server)
    process.store.flush(server)
    server.flushall()
    process.requests.inc(1)
    process.store.flush(server)
    process.store.flush(server)
    page = process.page(server)
    assert page.value("requests_total") == 1
    assert [value for _, value in page.samples["latency_bucket"]] == [0, 0, 0, 0]


def test_gauges_of_a_process_that_has_ended_vanish_and_its_counts_stay(
    server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, living = _Process(), _Process()
    for process in (ended, living):
        process.requests.inc(1)
        process.streams.set(2)
        process.store.flush(server)
    assert living.page(server).value("streams") == 4
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    living.store.flush(server)
    page = living.page(server)
    assert page.value("streams") == 2
    assert page.value("requests_total") == 2


def test_reports_do_not_pile_up(server: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for number in range(5):
        monkeypatch.setattr(time, "time", lambda number=number: now + 3700 * number)
        process = _Process()
        process.requests.inc(1)
        process.store.flush(server)
    assert server.hlen("llmis:web:master:reports") == 1
    assert process.num_requests(server) == 5


def test_each_master_begins_at_zero_and_its_keys_expire(server: redis.Redis) -> None:
    before, after = _Process("before"), _Process("after")
    before.requests.inc(7)
    for process in (before, after):
        process.store.flush(server)
    assert after.num_requests(server) == 0
    keys = server.keys()
    assert len(keys) == 4
    assert all(0 < server.ttl(key) <= 3600 for key in keys)


def test_a_process_that_ends_sends_all_that_is_left_and_withdraws_its_gauges(
    server: redis.Redis,
) -> None:
    process = _Process()
    process.requests.inc(1)
    process.streams.set(3)
    with pytest.raises(redis.ConnectionError):
        process.store.flush(_Intercepted(server, _lose_the_answer))  # type: ignore[arg-type]
    assert process.page(server).value("streams") == 3
    process.requests.inc(5)
    process.store.end(server)
    assert process.num_requests(server) == 6
    assert "streams" not in process.page(server).samples


def test_a_process_that_ends_says_that_redis_is_full(server: redis.Redis) -> None:
    process = _Process()
    server.config_set("maxmemory", 1)
    process.store.flush(server)
    with pytest.raises(redis.OutOfMemoryError):
        process.store.end(server)


def test_what_is_no_number_is_not_counted(server: redis.Redis) -> None:
    process = _Process()
    for amount in (float("nan"), float("inf"), 0.5):
        process.total_s.inc(amount)
    process.store.flush(server)
    assert process.page(server).value("latency_sum", model="m") == 0.5


def test_a_batch_that_fails_in_the_middle_is_not_added_again(server: redis.Redis) -> None:
    process = _Process()
    server.hset("llmis:web:master:counters", process.total_s.key, "broken")
    process.requests.inc(1)
    with pytest.raises(redis.ResponseError):
        process.store.flush(server)
    for _ in range(2):
        process.store.flush(server)
    assert float(server.hget("llmis:web:master:counters", process.requests.key) or 0) == 1
