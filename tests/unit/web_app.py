"""The web application's routes without the services behind them."""

from functools import cache
from types import SimpleNamespace

from flask import Flask

from app import factory
from shared.settings import Settings


@cache
def made() -> Flask:
    """All routes; what asks Redis fails. Once a process: blueprints and metrics are global."""
    app = factory.bare_app()
    app.extensions["llmis"] = SimpleNamespace(settings=Settings())
    factory.register_routes(app)
    return app
