"""The metrics' names, types, labels and buckets: dashboards and alerts are made of them."""

import math
from types import SimpleNamespace

from prometheus_client import REGISTRY, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from app.auth.authenticator import Reason
from app.metrics.request_record import Outcome, Stage
from app.metrics.service_state import ServiceState
from shared.queue.job_queue import RejectReason
from tests.contract.frozen_file import assert_frozen
from tests.contract.job_examples import REPLICAS
from tests.contract.lifecycle_examples import MESSAGES
from tests.support import web_app
from tests.support.metrics_page import Page


def _own_collectors() -> list[MetricWrapperBase]:
    """What the web application counts, with the HTTP metrics of prometheus-flask-exporter."""
    web_app.made()
    collectors = {
        collector
        for collector in REGISTRY._names_to_collectors.values()
        if isinstance(collector, MetricWrapperBase)
    }
    return [c for c in collectors if c.describe()[0].name.startswith("llmis_")]


def test_what_the_web_tier_counts() -> None:
    found = {}
    for collector in _own_collectors():
        (metric,) = collector.describe()
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        bounds = getattr(collector, "_upper_bounds", None) or collector._kwargs.get("buckets", ())
        found[name] = {
            "type": metric.type,
            "labels": list(collector._labelnames),
            "buckets": " ".join(f"{float(bound):.12g}" for bound in bounds if bound < math.inf),
        }
    assert_frozen("metrics/web.json", found)


def _state_page() -> Page:
    """The page of a service with one replica on one node."""
    records, nodes = [REPLICAS["replica-full"]], [MESSAGES["node-full"]]
    directory = SimpleNamespace(
        is_reachable=True,
        is_fresh=True,
        replicas=lambda model=None: records,
        nodes=lambda: nodes,
        is_served=lambda model: True,
    )
    state = ServiceState(
        directory=directory,  # type: ignore[arg-type]
        models=["m"],
        queue_lengths={"m": 1},
        oldest_at=lambda model: 1.0,
    )
    return Page(generate_latest(state).decode())


def test_what_the_web_tier_shows_of_replicas_and_nodes() -> None:
    page = _state_page()
    types = dict(line.split()[2:] for line in page.text.splitlines() if line.startswith("# TYPE"))
    labels = {name: sorted({*samples[0][0]}) for name, samples in page.samples.items()}
    assert types.keys() == labels.keys()
    found = {name: {"type": types[name], "labels": labels[name]} for name in types}
    assert_frozen("metrics/state.json", found)


def test_the_values_of_labels_that_are_words_of_ours() -> None:
    page = _state_page()
    found = {
        "outcome": list(Outcome),
        "stage": list(Stage),
        "auth reason": list(Reason),
        "limit": list(RejectReason),
        **{label: sorted(page.label_values(label)) for label in ("state", "kind")},
    }
    assert_frozen("metrics/label_values.json", found)
