"""Makes the Flask application of one web process: its services, its middleware, its routes."""

from collections.abc import Callable
from typing import Any

from flask import Flask

from app import background
from app.api import completions, embeddings, health, metrics, models, pages, requests, tokenize
from app.api.admin import models as admin
from app.api.admin import restarts
from app.auth.authenticator import Authenticator
from app.events.hub import Hub
from app.jobs.build import JobBuilder
from app.jobs.dispatcher import Dispatcher
from app.middleware import authentication, error_handlers, origins, request_log, response_headers
from app.models.catalog import Catalog
from app.models.last_used import LastUsed
from app.models.loader import Loader
from app.services import Services
from app.streaming.job_supervisor import RelayParts
from app.streaming.queue_monitor import QueueLengths, QueuePositions
from app.streaming.watchdog import JobWatchdog
from app.websocket import connection
from shared import logs
from shared.celery_app import app as celery_app
from shared.clock import clock
from shared.denylist.file import denylist_of
from shared.redis.connection import check_server, connect_warm
from shared.redis.retry import retry_forever
from shared.registry.directory import Directory
from shared.settings.fields import Settings
from shared.settings.load import load as load_settings

_CONNECTIONS = 9
"""To Redis: one that the hub listens on, the others for the requests and the beat."""


class _App(Flask):
    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Views and hooks are no coroutines here: Flask need not look at each of them, for every
        request."""
        return func


def create_app(settings: Settings | None = None) -> Flask:
    """Build the application and connect it; waits for Redis. Raises SettingsError, and
    redis.RedisError when Redis rejects the connection."""
    settings = settings or load_settings()
    logs.configure("web", settings.log_level, with_prompts=settings.log_prompts)
    app = bare_app()
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.extensions["llmis"] = _services(settings)
    register_routes(app)
    return app


def bare_app() -> Flask:
    """The application without services and routes. A path with `//` in it is unknown: a redirect
    would need the scheme and host by which a proxy's clients reach the service."""
    app = _App(__name__, static_folder="../static", template_folder="../templates")
    app.url_map.merge_slashes = False
    return app


def register_routes(app: Flask) -> None:
    """Add middleware and routes. Hooks before a request run in this order, hooks after it in the
    reverse."""
    request_log.register(app)
    response_headers.register(app)
    origins.register(app)
    authentication.register(app)
    error_handlers.register(app)
    metrics.register(app)
    for resource in (completions, requests, embeddings, tokenize, models, admin, restarts, health):
        app.register_blueprint(resource.blueprint)
    connection.register(app)
    pages.register(app)  # last: the OpenAPI document lists all other routes


def _services(settings: Settings) -> Services:
    denylist = denylist_of(settings)
    # Wait instead of failing: the first web process that fails to start ends gunicorn.
    client = retry_forever(lambda: connect_warm(settings, _CONNECTIONS), "the start")
    retry_forever(lambda: check_server(client), "the start")
    retry_forever(lambda: clock.measure(client), "the start")
    hub = Hub(client)
    retry_forever(hub.start, "the start")
    directory = Directory(client)
    retry_forever(directory.refresh, "the start")
    dispatcher = Dispatcher(settings, client, celery_app, hub, directory)
    catalog = Catalog(settings, directory)
    loader = Loader(settings, client, celery_app, directory, catalog)
    queues = QueueLengths(client)
    watchdog = JobWatchdog(client, queues)
    watchdog.start()
    positions = QueuePositions(dispatcher.queue)
    relay = RelayParts(settings, dispatcher, directory, queues, loader, watchdog, positions)
    last_used = LastUsed(client)
    authenticator = Authenticator(settings, client, directory)
    retry_forever(authenticator.refresh, "the start")
    services = Services(
        settings=settings,
        client=client,
        hub=hub,
        dispatcher=dispatcher,
        directory=directory,
        catalog=catalog,
        loader=loader,
        last_used=last_used,
        job_builder=JobBuilder(settings, catalog, loader, denylist, last_used),
        relay=relay,
        authenticator=authenticator,
        denylist=denylist,
    )
    background.start(services)
    return services
