"""`GET /metrics`, and the HTTP metrics of prometheus-flask-exporter."""

import os
from pathlib import Path
from typing import Any

from flask import Flask, Request, Response, request
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_flask_exporter import PrometheusMetrics

from app import counter_text, meters
from app.documented import documented
from app.state_metrics import ServiceState

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
    """Shows what the web processes of the host share, and the service's state."""

    def __init__(self, app: Flask, **options: Any) -> None:
        self._state = CollectorRegistry()
        self._state.register(ServiceState(app))
        super().__init__(app, **options)

    def info(self, *args: Any, **labels: Any) -> None:
        """The exporter's version is no metric: it would be one for each process that ever ran."""

    def generate_metrics(self, *_: Any) -> tuple[str, str]:
        """All there is, in the one format that every Prometheus reads."""
        meters.flush()
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        counted = counter_text.shown(Path(folder)) if folder else _text(REGISTRY)
        return counted + _text(self._state), CONTENT_TYPE_PLAIN_0_0_4


def _text(registry: CollectorRegistry) -> str:
    return generate_latest(registry).decode()
