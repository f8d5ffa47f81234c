"""The web application without its metrics: what `bench.metrics_cost` compares with."""

from typing import Any

from app import factory, meters, metrics_page, relay


class _Nothing:
    def __init__(self, *_: Any) -> None: ...

    def observe(self, *_: Any) -> None: ...

    def close(self, *_: Any) -> None: ...


relay.StreamMetrics = _Nothing  # type: ignore[assignment,misc]
relay.Relay.delivered = lambda self: None  # type: ignore[method-assign]
meters.flush = lambda: None
metrics_page.register = lambda app: None

app = factory.create_app()
