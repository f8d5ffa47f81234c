"""The web application's routes without the services behind them."""

from types import SimpleNamespace

from flask import Flask
from prometheus_client import REGISTRY

from app import factory
from shared.settings import Settings


def made() -> Flask:
    """All routes; what asks Redis fails. One at a time: the metrics' registry is global."""
    app = factory.bare_app()
    app.extensions["llmis"] = SimpleNamespace(settings=Settings())
    before = set(REGISTRY._collector_to_names)
    factory.register_routes(app)
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)
    return app
