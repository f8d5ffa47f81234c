"""The service's state as metrics, from this process's copy of the registry at the time of the
scrape: a replica or node that is gone has no series. Nothing here asks Redis.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.clock import clock
from shared.registry.directory import Directory
from shared.wire.records import NodeRecord, ReplicaRecord, ReplicaState

_RAM = "cpu"
_MODEL = ("model",)
_REPLICA = ("model", "replica")
_DEVICE = ("node", "device", "kind")


@dataclass(frozen=True, kw_only=True)
class ServiceState(Collector):
    """One scrape's."""

    directory: Directory
    models: list[str]
    queue_lengths: Mapping[str, int]
    oldest_at: Callable[[str], float | None]
    """Model → Unix time of the oldest request that waits for it."""

    def collect(self) -> Iterator[Metric]:
        is_up = _gauge("llmis_redis_up", "1 = the registry could be read at the last beat.")
        is_up.add_metric([], self.directory.is_reachable)
        yield is_up
        if self.directory.is_fresh:
            yield from _model_metrics(self)
            yield from _replica_metrics(self.directory.replicas())
            yield from _node_metrics(self.directory.nodes())


def _gauge(name: str, text: str, labels: Sequence[str] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)


def _model_metrics(state: ServiceState) -> Iterator[Metric]:
    running = _gauge("llmis_num_requests_running", "Slots in use.", _MODEL)
    waiting = _gauge(
        "llmis_num_requests_waiting",
        "Requests in the model's queue, and sequences that wait for a slot.",
        _MODEL,
    )
    oldest = _gauge(
        "llmis_oldest_waiting_seconds", "Age of the oldest request in the model's queue.", _MODEL
    )
    slots = _gauge("llmis_slots", "Slots of all replicas that have loaded the model.", _MODEL)
    replicas = _gauge("llmis_replicas", "Live replicas.", (*_MODEL, "state"))
    speed = _gauge(
        "llmis_tokens_per_second", "Tokens generated per second, over the last seconds.", _MODEL
    )
    loaded = _gauge("llmis_models_loaded", "Models with a ready replica.")
    for name in state.models:
        records = state.directory.replicas(name)
        num_waiting = state.queue_lengths.get(name, 0) + sum(r.waiting_sequences for r in records)
        running.add_metric([name], sum(record.busy_slots for record in records))
        waiting.add_metric([name], num_waiting)
        oldest_at = state.oldest_at(name)
        oldest.add_metric([name], clock.age_s(oldest_at) if oldest_at else 0.0)
        has_slots = [r for r in records if r.state is not ReplicaState.LOADING]
        slots.add_metric([name], sum(record.slots for record in has_slots))
        speed.add_metric([name], sum(record.tokens_per_s for record in records))
        states = Counter(record.state for record in records)
        for replica_state in ReplicaState:
            replicas.add_metric([name, replica_state.value], states[replica_state])
    loaded.add_metric([], sum(state.directory.is_served(name) for name in state.models))
    yield from (running, waiting, oldest, slots, replicas, speed, loaded)


def _replica_metrics(records: list[ReplicaRecord]) -> Iterator[Metric]:
    usage = _gauge(
        "llmis_kv_cache_usage_ratio", "Part of the KV cache that running sequences hold.", _REPLICA
    )
    step_age = _gauge(
        "llmis_engine_step_age_seconds",
        "Time since the last step ended, while there is work.",
        _REPLICA,
    )
    steps = CounterMetricFamily("llmis_engine_steps", "Engine steps.", labels=_REPLICA)
    memory = _gauge(
        "llmis_replica_memory_bytes",
        "Memory that a replica uses, and its estimate.",
        (*_REPLICA, *_DEVICE),
    )
    for record in records:
        labels = [record.model, record.id]
        if record.kv_usage is not None:
            usage.add_metric(labels, record.kv_usage)
        step_age.add_metric(labels, record.step_age_s)
        steps.add_metric(labels, record.steps)
        labels = [*labels, record.node]
        memory.add_metric([*labels, _RAM, "used"], record.memory_bytes)
        for device, num_bytes in record.device_bytes.items():
            memory.add_metric([*labels, device, "used"], num_bytes)
        memory.add_metric([*labels, record.device, "estimated"], record.estimated_bytes)
    yield from (usage, step_age, steps, memory)


def _node_metrics(nodes: list[NodeRecord]) -> Iterator[Metric]:
    memory = _gauge(
        "llmis_node_memory_bytes",
        "Memory of a node's devices: total, free for a load, promised to replicas.",
        _DEVICE,
    )
    for node in nodes:
        for device in node.devices:
            memory.add_metric([node.id, device.id, "total"], device.total_bytes)
            memory.add_metric([node.id, device.id, "free"], device.free_bytes)
            memory.add_metric([node.id, device.id, "promised"], device.promised_bytes)
    yield memory
