"""The service's state at `/metrics`, from the records of replicas and nodes."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from prometheus_client import CollectorRegistry, generate_latest

from app.sight import Sight
from app.state_metrics import ServiceState
from shared.lifecycle import Device, NodeRecord
from shared.messages import ReplicaRecord, ReplicaState
from tests.metrics_page import Page


def _replica(replica_id: str, model: str = "m", **fields: Any) -> ReplicaRecord:
    defaults: dict[str, Any] = {
        "engine": "llamacpp", "device": "cpu", "node": "n", "assignment_id": "a", "pid": 1,
        "versions": {}, "state": ReplicaState.READY, "stage": "ready", "fraction": 1.0, "slots": 4,
        "busy_slots": 3, "waiting_sequences": 1, "context_length": 512, "capabilities": [],
        "steps": 7, "step_age_s": 0.25, "generated_tokens": 9, "tokens_per_s": 12.5,
        "memory_bytes": 100, "mapped_bytes": 50, "estimated_bytes": 120, "started_at": 0.0,
    }  # fmt: skip
    return ReplicaRecord(id=replica_id, model=model, **{**defaults, **fields})


class _Service:
    def __init__(self) -> None:
        self.records: list[ReplicaRecord] = []
        self.nodes: list[NodeRecord] = []
        self.sight = Sight()
        self.oldest_at: float | None = None
        self.queued = 0

    @property
    def services(self) -> Any:
        def replicas(model: str | None = None) -> list[ReplicaRecord]:
            return [one for one in self.records if model in (None, one.model)]

        directory = SimpleNamespace(
            replicas=replicas,
            nodes=lambda: self.nodes,
            is_served=lambda m: any(r.state is ReplicaState.READY for r in replicas(m)),
        )
        names = sorted({record.model for record in self.records})
        relay = SimpleNamespace(
            queues=SimpleNamespace(all=lambda: {"m": self.queued}),
            positions=SimpleNamespace(oldest_at=lambda _: self.oldest_at),
        )
        catalog = SimpleNamespace(names=lambda: names)
        return SimpleNamespace(directory=directory, catalog=catalog, relay=relay, sight=self.sight)

    def page(self) -> Page:
        app = Flask(__name__)
        app.extensions["llmis"] = self.services
        registry = CollectorRegistry()
        registry.register(ServiceState(app))
        return Page(generate_latest(registry).decode())


def test_a_model_with_two_replicas() -> None:
    service = _Service()
    service.records = [_replica("a"), _replica("b", state=ReplicaState.DRAINING, kv_usage=0.5),
                       _replica("c", state=ReplicaState.LOADING, busy_slots=0)]  # fmt: skip
    service.queued, service.oldest_at = 5, time.time() - 30
    page = service.page()
    assert page.value("llmis_num_requests_running", model="m") == 6
    assert page.value("llmis_num_requests_waiting", model="m") == 5 + 3
    assert 30 <= page.value("llmis_oldest_waiting_seconds", model="m") < 300
    assert page.value("llmis_slots", model="m") == 8, "those of who loads are not there yet"
    for state in ReplicaState:
        assert page.value("llmis_replicas", model="m", state=state.value) == 1
    assert page.value("llmis_models_loaded") == 1
    assert page.value("llmis_tokens_per_second") == 37.5
    assert page.value("llmis_engine_steps_total", replica="a") == 7
    assert page.value("llmis_engine_step_age_seconds", replica="a") == 0.25
    assert page.samples["llmis_kv_cache_usage_ratio"] == [({"model": "m", "replica": "b"}, 0.5)]


def test_who_is_gone_has_no_series() -> None:
    service = _Service()
    service.records = [_replica("a"), _replica("b", "other")]
    assert {"a", "b"} <= service.page().label_values("replica")
    service.records = [_replica("a")]
    page = service.page()
    assert page.label_values("replica") == {"a"}
    assert page.label_values("model") == {"m"}


def test_memory_of_a_gpu_replica() -> None:
    service = _Service()
    service.records = [_replica("a", device="cuda:0", device_bytes={"cuda:0": 5000})]
    service.nodes = [
        NodeRecord(id="n", pid=1, versions={}, started_at=0.0, cpus=2, promised_bytes=30,
                   devices=[Device("cpu", "x", 900, 400, 10), Device("cuda:0", "y", 800, 300, 20)],
                   models=[])
    ]  # fmt: skip
    page = service.page()

    def replica(device: str, kind: str) -> float:
        return page.value("llmis_replica_memory_bytes", device=device, kind=kind, node="n")

    assert replica("cpu", "used") == 100
    assert replica("cuda:0", "used") == 5000
    assert replica("cuda:0", "estimated") == 120
    assert replica("cpu", "estimated") == 0
    of_node = {
        (has["device"], has["kind"]): v for has, v in page.samples["llmis_node_memory_bytes"]
    }
    assert of_node == {
        ("cpu", "total"): 900, ("cpu", "free"): 400, ("cpu", "promised"): 10,
        ("cuda:0", "total"): 800, ("cuda:0", "free"): 300, ("cuda:0", "promised"): 20,
    }  # fmt: skip


def test_what_nobody_has_seen_for_long_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    service = _Service()
    service.records = [_replica("a")]
    assert service.page().value("llmis_redis_up") == 1
    service.sight.cloud()
    page = service.page()
    assert page.value("llmis_redis_up") == 0
    assert page.label_values("replica") == {"a"}, "it was there a moment ago"
    later = time.monotonic() + 60
    monkeypatch.setattr("app.sight.time.monotonic", lambda: later)
    page = service.page()
    assert page.value("llmis_redis_up") == 0
    assert list(page.samples) == ["llmis_redis_up"]
    service.sight.clear()
    assert service.page().label_values("replica") == {"a"}
