"""The counters that the web processes of one gunicorn master add up in a Redis hash.

`prometheus_client` counts in the process. With every beat a process adds what was counted since to
the hash, and `/metrics` shows the hash. An increment arrives once: batches are numbered, and one
whose answer was lost is sent again unchanged. While Redis is away or full the increments stay in
the process. Runs in the process's one thread.
"""

import json
import logging
import os
import uuid
from functools import partial
from math import isfinite
from typing import Any

import msgspec
import redis
from msgspec import Struct
from prometheus_client import values

from app.metrics import MASTER_ID_VARIABLE
from shared import names
from shared.clock import clock
from shared.redis.scripts import script_text

_LUA = script_text("count")
_TTL_S = 3600
"""Renewed with each batch. An outage of Redis that is longer resets the counters."""
_FRESH_S = 10.0
"""The gauges of a process are shown for so long after its last report."""
_log = logging.getLogger(__name__)


class _Report(Struct, frozen=True):
    """What a process says of its last batch."""

    sequence: int
    at: float
    """Unix time in seconds."""
    gauges: dict[str, float]


class CounterStore:
    """The values of one process, and their way to Redis."""

    def __init__(self, master_id: str) -> None:
        self._keys = (names.counters_key(master_id), names.counter_reports_key(master_id))
        self._process_id = uuid.uuid4().hex
        self._sequence = 0
        self._batch: list[str | bytes | float] | None = None
        """Sent, and not known to have arrived."""
        self._is_full = False
        self.gauges: list[SharedValue] = []
        self.counters: list[SharedValue] = []
        self.changed: dict[SharedValue, None] = {}

    def flush(self, client: "redis.Redis") -> None:
        """Add what was counted since the last batch. Raises redis.RedisError; the next call sends
        that batch again. Greenlets that call at the same time send the same one."""
        try:
            self._send(client)
            self._is_full = False
        except redis.OutOfMemoryError as exc:
            # Not raised: Redis answers, and the caller would take it for an outage.
            if not self._is_full:
                _log.warning("the counters wait until Redis has memory for them: %s", exc)
            self._is_full = True

    def end(self, client: "redis.Redis") -> None:
        """Add all that is left, without gauges: the process ends. Raises redis.RedisError, on a
        full Redis, too."""
        self.gauges.clear()
        for _ in range(1 if self._batch is None else 2):
            self._send(client)

    def _send(self, client: "redis.Redis") -> None:
        if self._batch is None:
            self._batch = self._next_batch()
        batch = self._batch
        is_first = client.eval(_LUA, len(self._keys), *self._keys, *batch)
        if self._batch is batch:
            self._batch = None
            if is_first:
                # Redis may have lost the hash: series with 0 belong to it, too.
                self.changed.update(dict.fromkeys(self.counters))

    def _next_batch(self) -> list[str | bytes | float]:
        self._sequence += 1
        gauges = {value.key: value.get() for value in self.gauges}
        report = msgspec.json.encode(_Report(self._sequence, clock.now(), gauges))
        batch: list[str | bytes | float] = [self._process_id, report, _TTL_S]
        for value in self.changed:
            batch += (value.key, value.take_increment())
        self.changed.clear()
        return batch

    def sums(self, client: "redis.Redis") -> dict[str, float]:
        """Key → the sum over all processes. Raises redis.RedisError."""
        with client.pipeline() as pipeline:  # one transaction
            pipeline.hgetall(self._keys[0])
            pipeline.hvals(self._keys[1])
            counters, reports = pipeline.execute()
        sums = {key.decode(): float(value) for key, value in counters.items()}
        for report in (msgspec.json.decode(payload, type=_Report) for payload in reports):
            if clock.age_s(report.at) < _FRESH_S:
                for key, value in report.gauges.items():
                    sums[key] = sums.get(key, 0.0) + value
        return sums


class SharedValue:
    """A number of `prometheus_client`: the interface of its `values.MutexValue`.

    Source: prometheus_client@v0.26.0:prometheus_client/values.py.
    """

    def __init__(
        self,
        store: CounterStore,
        kind: str,
        family: str,
        name: str,
        labels: tuple[str, ...],
        label_values: tuple[str, ...],
        *_: Any,
        **__: Any,
    ) -> None:
        suffix = name.removeprefix(family)
        self.key = json.dumps([family, suffix, dict(zip(labels, label_values, strict=True))])
        self._value = self._taken = 0.0
        self._changed = store.changed
        if kind == "gauge":
            store.gauges.append(self)
        else:
            store.counters.append(self)
            self.inc(0.0)  # its series is there before anything is counted

    def inc(self, amount: float) -> None:
        """Of a counter or a part of a histogram. An amount that is not finite is dropped: Redis
        adds none, and all later sums would be like it."""
        if isfinite(amount):
            self._value += amount
            self._changed[self] = None

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Of a gauge."""
        self._value = value

    def get(self) -> float:
        return self._value

    def get_exemplar(self) -> None:
        """There are none."""

    def take_increment(self) -> float:
        increment, self._taken = self._value - self._taken, self._value
        return increment


def install() -> CounterStore:
    """Have `prometheus_client` keep its numbers here. Before the first metric is made."""
    store = CounterStore(os.environ.get(MASTER_ID_VARIABLE) or uuid.uuid4().hex)
    values.ValueClass = partial(SharedValue, store)
    return store
