"""Makes the Flask application of one web process."""

import logging
from dataclasses import dataclass

import gevent
import redis
from flask import Flask, Response, g, request

from app import chat_page, errors, generation, health, metrics, models, websocket
from app.dispatch import Dispatcher, request_id_from
from app.hub import Hub
from app.relay import RelayParts
from shared import logs, names, registry
from shared import settings as settings_module
from shared.celery_app import app as celery_app
from shared.connections import connect
from shared.registry import Directory
from shared.settings import Settings

_log = logging.getLogger(__name__)
_PRIORITY_SUFFIXES = ("", "\x06\x163", "\x06\x166", "\x06\x169")
"""Kombu keeps one list a priority step: the queue's name, then name + separator + step."""


@dataclass(slots=True)
class Services:
    """What the resources of this process share; `current_app.extensions["llmis"]`."""

    settings: Settings
    client: "redis.Redis"
    hub: Hub
    dispatcher: Dispatcher
    directory: Directory
    relay: RelayParts
    is_stopping: bool = False


def create_app(settings: Settings | None = None) -> Flask:
    """Build the application and connect it. Raises SettingsError, redis.RedisError."""
    settings = settings or settings_module.load()
    logs.configure("web", settings.log_level)
    app = Flask(__name__, static_folder="../static", template_folder="../templates")
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.extensions["llmis"] = _services(settings)
    app.before_request(_take_request_id)
    app.after_request(_send_request_id)
    errors.register(app)
    metrics.register(app)
    for resource in (generation, models, health, chat_page, websocket):
        resource.register(app)
    return app


def _services(settings: Settings) -> Services:
    client = connect(settings)
    hub = Hub(client)
    hub.start()
    dispatcher = Dispatcher(settings, client, celery_app, hub)
    directory = Directory(client)
    directory.refresh()
    services = Services(
        settings, client, hub, dispatcher, directory, RelayParts(settings, dispatcher, directory)
    )
    gevent.spawn(_refresh_forever, services)
    return services


def _refresh_forever(services: Services) -> None:
    """Once a second: the registry into memory, the gauges from it."""
    while True:
        try:
            services.directory.refresh()
            metrics.set_gauges(services.directory.replicas(), _queue_lengths(services))
        except redis.RedisError as exc:
            _log.warning("registry not readable: %s", exc)
        gevent.sleep(registry.BEAT_S)


def _queue_lengths(services: Services) -> dict[str, int]:
    served = {record.model for record in services.directory.replicas()}
    model_names = sorted(served | {model.name for model in services.settings.models})
    pipe = services.client.pipeline(transaction=False)
    for name in model_names:
        for suffix in _PRIORITY_SUFFIXES:
            pipe.llen(names.model_queue(name) + suffix)
    lengths = pipe.execute()
    step = len(_PRIORITY_SUFFIXES)
    return {name: sum(lengths[i * step : (i + 1) * step]) for i, name in enumerate(model_names)}


def _take_request_id() -> None:
    g.request_id = request_id_from(request.headers.get("x-request-id"))


def _send_request_id(response: Response) -> Response:
    response.headers["x-request-id"] = g.request_id
    return response
