"""Makes the Flask application of one web process."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import gevent
import redis
from flask import Flask, Response, g, request

from app import (
    access,
    admin,
    chat_page,
    docs_page,
    embeddings,
    errors,
    filtering,
    generation,
    health,
    idempotency,
    limit_headers,
    meters,
    metrics_page,
    models,
    openapi,
    origins,
    request_log,
    requests,
    restarts,
    security_headers,
    tokenization,
    websocket,
)
from app.auth import Authenticator
from app.catalog import Catalog
from app.dispatch import Dispatcher, request_id_from
from app.heritage import Heritage
from app.hub import Hub
from app.loader import Loader
from app.lookout import Lookout
from app.metrics import STREAMS
from app.positions import Positions
from app.queues import QueueLengths
from app.relay import RelayParts
from app.sight import Sight
from app.usage import Usage
from shared import logs, registry
from shared import settings as settings_module
from shared.celery_app import app as celery_app
from shared.connections import check_server, connect
from shared.denylist_file import DenylistFile, denylist_of
from shared.outages import outlast
from shared.registry import Directory
from shared.rescue import Rescuer
from shared.settings import Settings

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Services:
    """What the resources of this process share; `current_app.extensions["llmis"]`."""

    settings: Settings
    client: "redis.Redis"
    hub: Hub
    dispatcher: Dispatcher
    directory: Directory
    catalog: Catalog
    loader: Loader
    usage: Usage
    relay: RelayParts
    authenticator: Authenticator
    sight: Sight
    denylist: DenylistFile | None = None
    """None = no filter."""
    is_stopping: bool = False
    started_at: float = field(default_factory=time.time)
    """Unix time in seconds."""
    reload_web: Callable[[], None] | None = None
    """Has the web processes replaced by new ones; None = there is no master that could."""
    close_sockets: set[Callable[[], None]] = field(default_factory=set)
    """Closes one open WebSocket each; for when the process stops."""


def create_app(settings: Settings | None = None, heritage: Heritage | None = None) -> Flask:
    """Build the application and connect it, once Redis answers. Raises SettingsError,
    redis.RedisError when Redis refuses."""
    settings = settings or settings_module.load()
    logs.configure("web", settings.log_level, with_prompts=settings.log_prompts)
    app = bare_app()
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.extensions["llmis"] = _services(settings, heritage or Heritage())
    register_routes(app)
    return app


def bare_app() -> Flask:
    """The application without services and routes: it knows where pages and assets are."""
    return Flask(__name__, static_folder="../static", template_folder="../templates")


def register_routes(app: Flask) -> None:
    """Add all that answers requests. The document of the routes comes last: it lists them."""
    app.before_request(_take_request_id)
    request_log.register(app)
    security_headers.register(app)
    origins.register(app)
    access.register(app)
    filtering.register(app)
    idempotency.register(app)
    limit_headers.register(app)
    app.after_request(_send_request_id)
    errors.register(app)
    metrics_page.register(app)
    for resource in (
        generation,
        requests,
        embeddings,
        tokenization,
        models,
        admin,
        restarts,
        health,
        chat_page,
    ):
        resource.register(app)
    websocket.register(app)
    docs_page.register(app)
    openapi.register(app)


def _services(settings: Settings, heritage: Heritage) -> Services:
    denylist = denylist_of(settings, heritage.denylist_at(str(settings.denylist_path)))
    client = connect(settings)
    # The first web process that fails to start takes gunicorn and all the others with it.
    outlast(lambda: check_server(client), "the start")
    hub = Hub(client)
    outlast(hub.start, "the start")
    directory = Directory(client)
    outlast(directory.refresh, "the start")
    dispatcher = Dispatcher(settings, client, celery_app, hub, directory)
    catalog = Catalog(settings, directory)
    loader = Loader(settings, client, celery_app, directory, catalog)
    usage = Usage(client)
    queues = QueueLengths(client)
    lookout = Lookout(client, queues)
    lookout.start()
    positions = Positions(dispatcher.queue)
    relay = RelayParts(settings, dispatcher, directory, queues, loader, lookout, positions)
    sight = Sight()
    authenticator = Authenticator(settings, client, sight, needs_issuer=heritage.is_first)
    outlast(authenticator.refresh, "the start")
    services = Services(
        *(settings, client, hub, dispatcher, directory, catalog, loader, usage, relay),
        *(authenticator, sight),
        denylist=denylist,
    )
    gevent.spawn(_refresh_forever, services)
    return services


def _refresh_forever(services: Services) -> None:
    """With every beat: keys, the registry, queues and who waits where into memory, what was
    measured into the shared files."""
    steps = _steps(services)
    while True:
        take_steps(steps, services.sight)
        gevent.sleep(registry.BEAT_S)


def take_steps(steps: Iterable[Callable[[], None]], sight: Sight) -> None:
    """One that fails does not keep the others from what they do, unless Redis is away."""
    for step in steps:
        try:
            step()
        except redis.RedisError as exc:
            sight.cloud()
            _log.warning("registry not readable: %s", exc)
            return
        except Exception:
            # A web process that sees nothing new would serve yesterday's replicas: go on.
            _log.exception("a part of the beat failed")


def _steps(services: Services) -> list[Callable[[], None]]:
    """What touches Redis comes last."""
    queues, positions = services.relay.queues, services.relay.positions

    def look() -> None:
        services.directory.refresh()
        queues.refresh(services.catalog.names())
        positions.refresh(name for name, length in queues.all().items() if length)
        services.sight.clear()

    return [
        meters.flush,
        lambda: STREAMS.set(services.hub.num_streams),
        *([services.denylist.look] if services.denylist is not None else []),
        services.authenticator.refresh,
        look,
        Rescuer(services.client, services.dispatcher.queue).look,
        services.usage.flush,
    ]


def _take_request_id() -> None:
    request_log.name_request(request_id_from(request.headers.get("x-request-id")))


def _send_request_id(response: Response) -> Response:
    response.headers["x-request-id"] = g.request_id
    return response
