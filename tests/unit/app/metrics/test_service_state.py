"""The service's state at `/metrics`, from the records of replicas and nodes."""

import time
from types import SimpleNamespace
from typing import Any

from prometheus_client import generate_latest

from app.metrics.service_state import ServiceState
from shared.wire.records import Device, NodeRecord, ReplicaRecord, ReplicaState
from tests.support.metrics_page import Page
from tests.support.registry_records import make_replica


def _replica(replica_id: str, model: str = "m", **fields: Any) -> ReplicaRecord:
    busy = {"slots": 4, "busy_slots": 3, "waiting_sequences": 1}
    work = {"steps": 7, "step_age_s": 0.25, "generated_tokens": 9, "tokens_per_s": 12.5}
    memory = {"memory_bytes": 100, "mapped_bytes": 50, "estimated_bytes": 120}
    return make_replica(replica_id, model, **{**busy, **work, **memory, **fields})


class _Service:
    def __init__(self) -> None:
        self.records: list[ReplicaRecord] = []
        self.nodes: list[NodeRecord] = []
        self.is_up = self.is_fresh = True
        self.oldest_at: float | None = None
        self.queued = 0

    def page(self) -> Page:
        def replicas(model: str | None = None) -> list[ReplicaRecord]:
            return [one for one in self.records if model in (None, one.model)]

        directory: Any = SimpleNamespace(
            is_reachable=self.is_up,
            is_fresh=self.is_fresh,
            replicas=replicas,
            nodes=lambda: self.nodes,
            is_served=lambda m: any(r.state is ReplicaState.READY for r in replicas(m)),
        )
        state = ServiceState(
            directory=directory,
            models=sorted({record.model for record in self.records}),
            queue_lengths={"m": self.queued},
            oldest_at=lambda _: self.oldest_at,
        )
        return Page(generate_latest(state).decode())


def test_a_model_with_two_replicas() -> None:
    service = _Service()
    service.records = [_replica("a"), _replica("b", state=ReplicaState.DRAINING, kv_usage=0.5),
                       _replica("c", state=ReplicaState.LOADING, busy_slots=0)]  # fmt: skip
    service.queued, service.oldest_at = 5, time.time() - 30
    page = service.page()
    assert page.value("llmis_num_requests_running", model="m") == 6
    assert page.value("llmis_num_requests_waiting", model="m") == 5 + 3
    assert 30 <= page.value("llmis_oldest_waiting_seconds", model="m") < 300
    assert page.value("llmis_slots", model="m") == 8, "a replica that loads has no slots yet"
    for state in ReplicaState:
        assert page.value("llmis_replicas", model="m", state=state.value) == 1
    assert page.value("llmis_models_loaded") == 1
    assert page.value("llmis_tokens_per_second") == 37.5
    assert page.value("llmis_engine_steps_total", replica="a") == 7
    assert page.value("llmis_engine_step_age_seconds", replica="a") == 0.25
    assert page.samples["llmis_kv_cache_usage_ratio"] == [({"model": "m", "replica": "b"}, 0.5)]


def test_a_replica_that_is_gone_has_no_series() -> None:
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


def test_an_old_copy_of_the_registry_is_not_shown() -> None:
    service = _Service()
    service.records = [_replica("a")]
    assert service.page().value("llmis_redis_up") == 1
    service.is_up = False
    page = service.page()
    assert page.value("llmis_redis_up") == 0
    assert page.label_values("replica") == {"a"}, "it was there a moment ago"
    service.is_fresh = False
    page = service.page()
    assert page.value("llmis_redis_up") == 0
    assert list(page.samples) == ["llmis_redis_up"]
