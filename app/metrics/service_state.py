"""The service's state as metrics, made of this process's copy of the registry when it is asked
for: what is gone has no series. Nothing here asks Redis.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from flask import Flask
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.lifecycle import NodeRecord
from shared.messages import ReplicaRecord, ReplicaState

if TYPE_CHECKING:
    from app.factory import Services

_RAM = "cpu"


class ServiceState(Collector):
    def __init__(self, app: Flask) -> None:
        self._app = app

    def describe(self) -> Iterable[Metric]:
        """What is shown depends on what is there."""
        return []

    def collect(self) -> Iterator[Metric]:
        services: Services = self._app.extensions["llmis"]
        sight = services.sight
        is_up = _gauge("llmis_redis_up", "1 = the registry could be read at the last beat.")
        is_up.add_metric([], sight.is_clear)
        yield is_up
        if sight.is_fresh:
            yield from _of_models(services)
            yield from _of_replicas(services.directory.replicas())
            yield from _of_nodes(services.directory.nodes())


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)


def _of_models(services: "Services") -> Iterator[Metric]:
    running = _gauge("llmis_num_requests_running", "Slots in use.", "model")
    waiting = _gauge(
        "llmis_num_requests_waiting",
        "Requests in the model's queue, and sequences that wait for a slot.",
        "model",
    )
    oldest = _gauge(
        "llmis_oldest_waiting_seconds", "Age of the oldest request in the model's queue.", "model"
    )
    slots = _gauge("llmis_slots", "Slots of all replicas that have loaded the model.", "model")
    replicas = _gauge("llmis_replicas", "Live replicas.", "model", "state")
    speed = _gauge(
        "llmis_tokens_per_second", "Tokens generated a second, over the last seconds.", "model"
    )
    loaded = _gauge("llmis_models_loaded", "Models with a ready replica.")
    directory, queue_lengths = services.directory, services.relay.queues.all()
    names, now = services.catalog.names(), time.time()
    for name in names:
        records = directory.replicas(name)
        num_waiting = queue_lengths.get(name, 0) + sum(r.waiting_sequences for r in records)
        running.add_metric([name], sum(record.busy_slots for record in records))
        waiting.add_metric([name], num_waiting)
        oldest_at = services.relay.positions.oldest_at(name)
        oldest.add_metric([name], max(0.0, now - oldest_at) if oldest_at else 0.0)
        has_slots = [r for r in records if r.state is not ReplicaState.LOADING]
        slots.add_metric([name], sum(record.slots for record in has_slots))
        speed.add_metric([name], sum(record.tokens_per_s for record in records))
        states = Counter(record.state for record in records)
        for state in ReplicaState:
            replicas.add_metric([name, state.value], states[state])
    loaded.add_metric([], sum(directory.is_served(name) for name in names))
    yield from (running, waiting, oldest, slots, replicas, speed, loaded)


def _of_replicas(records: list[ReplicaRecord]) -> Iterator[Metric]:
    usage = _gauge(
        "llmis_kv_cache_usage_ratio",
        "Part of the KV cache that running sequences hold.",
        "model",
        "replica",
    )
    step_age = _gauge(
        "llmis_engine_step_age_seconds",
        "For how long there was work and no step ended.",
        "model",
        "replica",
    )
    steps = CounterMetricFamily("llmis_engine_steps", "Engine steps.", labels=("model", "replica"))
    memory = _gauge(
        "llmis_replica_memory_bytes",
        "Memory that a replica has, and what its estimate said.",
        *("model", "replica", "node", "device", "kind"),
    )
    for record in records:
        labels = [record.model, record.id]
        if record.kv_usage is not None:
            usage.add_metric(labels, record.kv_usage)
        step_age.add_metric(labels, record.step_age_s)
        steps.add_metric(labels, record.steps)
        where = [*labels, record.node]
        memory.add_metric([*where, _RAM, "used"], record.memory_bytes)
        for device, num_bytes in record.device_bytes.items():
            memory.add_metric([*where, device, "used"], num_bytes)
        memory.add_metric([*where, record.device, "estimated"], record.estimated_bytes)
    yield from (usage, step_age, steps, memory)


def _of_nodes(nodes: list[NodeRecord]) -> Iterator[Metric]:
    memory = _gauge(
        "llmis_node_memory_bytes",
        "Memory of a node's devices: all, what a load may take, what replicas will still take.",
        *("node", "device", "kind"),
    )
    for node in nodes:
        for device in node.devices:
            memory.add_metric([node.id, device.id, "total"], device.total_bytes)
            memory.add_metric([node.id, device.id, "free"], device.free_bytes)
            memory.add_metric([node.id, device.id, "promised"], device.promised_bytes)
    yield memory
