"""The web application's routes without the services behind them."""

from functools import cache
from types import SimpleNamespace

import redis
from flask import Flask

from app import factory
from app.auth.authenticator import Authenticator
from shared.registry.directory import Directory
from shared.settings.fields import Settings


def _services(settings: Settings) -> SimpleNamespace:
    """What asks Redis fails."""
    authenticator = Authenticator(settings, redis.Redis(), Directory(redis.Redis()))
    return SimpleNamespace(settings=settings, authenticator=authenticator, denylist=None)


@cache
def made() -> Flask:
    """All routes. Once a process: blueprints and metrics are global."""
    app = factory.bare_app()
    app.extensions["llmis"] = _services(Settings())
    factory.register_routes(app)
    return app
