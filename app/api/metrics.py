"""`GET /metrics`, and the HTTP metrics of prometheus-flask-exporter."""

import logging
from functools import cache
from typing import Any

import redis
from flask import Flask, Request, Response, request
from prometheus_client import REGISTRY
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_flask_exporter import PrometheusMetrics

from app.metrics import buffered
from app.metrics.definitions import STORE
from app.metrics.service_state import ServiceState
from app.metrics.text_format import metrics_text
from app.openapi.documented import documented
from app.services import services

_log = logging.getLogger(__name__)
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0)
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def register(app: Flask) -> None:
    """Before the routes: each of them is measured."""
    _Exporter(app, group_by=route, defaults_prefix="llmis", buckets=_BUCKETS_S)
    # After the exporter's own: what is registered last runs first.
    app.after_request(_bound_method)
    view = app.view_functions["prometheus_metrics"]
    view.__doc__ = "Show the service's metrics in Prometheus' text format."
    documented(str, media_type="text/plain")(view)


def route(asked: Request) -> str:
    """A label: the rule that matched, not the path, which is the client's choice."""
    return asked.url_rule.rule if asked.url_rule is not None else ""


def _bound_method(response: Response) -> Response:
    """The method becomes a label, too, and clients may send any word."""
    if request.method not in _METHODS:
        request.method = "other"
    return response


class _Exporter(PrometheusMetrics):  # type: ignore[misc]
    """Shows what the web processes of this master counted, and the service's state."""

    def info(self, *args: Any, **labels: Any) -> None:
        """The exporter's version is no metric: it would be one for each process that ever ran."""

    def generate_metrics(self, *_: Any) -> tuple[str, str]:
        """All there is, in the one format that every Prometheus reads."""
        return _counted_text() + _state_text(), CONTENT_TYPE_PLAIN_0_0_4


def _counted_text() -> str:
    """Without Redis nothing: a process's own numbers are smaller than the sums, and Prometheus
    would take them for counters that began again."""
    parts = services()
    if not parts.directory.is_reachable:
        return ""
    try:
        buffered.flush(parts.client)
        return metrics_text(STORE.sums(parts.client), _descriptions())
    except redis.RedisError as exc:
        _log.warning("the counters could not be read: %s", exc)
        return ""


@cache
def _descriptions() -> dict[str, tuple[str, str]]:
    """Family → type and help. All families are made before the first request."""
    return {metric.name: (metric.type, metric.documentation) for metric in REGISTRY.collect()}


def _state_text() -> str:
    parts = services()
    state = ServiceState(
        directory=parts.directory,
        models=parts.catalog.names(),
        queue_lengths=parts.relay.queues.all(),
        oldest_at=parts.relay.positions.oldest_at,
    )
    return generate_latest(state).decode()
