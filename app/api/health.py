"""`GET /healthz` (alive), `GET /readyz` (can answer), `GET /version`."""

import platform
from importlib.metadata import version
from typing import Literal

import msgspec
import redis
from flask import Blueprint, Flask, Response
from msgspec import Struct

from app.catalog import Catalog, ModelState
from app.documented import documented
from app.services import services
from shared import names
from shared.messages import ReplicaState
from shared.registry import Directory
from shared.settings import Settings
from shared.version import VERSION

blueprint = Blueprint("health", __name__)
_FRESH_S = 0.1


class Alive(Struct, frozen=True):
    status: Literal["ok"] = "ok"


class Ready(Struct, frozen=True):
    status: Literal["ready"] = "ready"


class NotReady(Struct, frozen=True, kw_only=True):
    status: Literal["not ready"] = "not ready"
    reasons: list[str]


class Versions(Struct, frozen=True):
    version: str
    """Of llmis."""
    python: str
    packages: dict[str, str]


def register(app: Flask) -> None:
    app.register_blueprint(blueprint)


def _json(body: Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, content_type="application/json")


@blueprint.get("/healthz")
@documented(Alive)
def healthz() -> Response:
    """Tell that the web process is alive."""
    return _json(Alive())


@blueprint.get("/readyz")
@documented(Ready, also={503: NotReady})
def readyz() -> Response:
    """Tell whether requests would be answered.

    They are when Redis takes them and a replica is ready that makes progress if it has jobs, or
    none is loaded and the first request would load one.
    """
    shared = services()
    reasons = []
    try:
        shared.client.set(names.PROBE, 1, ex=60)
    except redis.OutOfMemoryError:
        reasons.append("Redis has no memory left")
    except redis.ResponseError as exc:
        reasons.append(f"Redis takes no requests: {exc}")
    except redis.RedisError:
        reasons.append("Redis does not answer")
    if not shared.hub.is_connected:
        reasons.append("the pub/sub connection is down")
    is_served = _is_served(shared.directory, shared.settings)
    if not is_served and not reasons:
        # The copy of the registry is up to a beat old.
        shared.directory.refresh_if_older(_FRESH_S)
        is_served = _is_served(shared.directory, shared.settings)
    if not is_served and not _waits_for_demand(shared.catalog, shared.directory):
        reasons.append("no replica is ready")
    if reasons:
        return _json(NotReady(reasons=reasons), 503)
    return _json(Ready())


def _is_served(directory: Directory, settings: Settings) -> bool:
    return any(
        record.state is ReplicaState.READY and not record.is_stalled(settings.stall_timeout_s)
        for record in directory.replicas()
    )


def _waits_for_demand(catalog: Catalog, directory: Directory) -> bool:
    """Whether nothing is loaded because nobody asked: the first request loads its model."""
    states = {catalog.state(name) for name in catalog.names()}
    return states == {ModelState.UNLOADED} and bool(directory.nodes())


@blueprint.get("/version")
@documented(Versions)
def show_version() -> Response:
    """Tell the versions of llmis and of what it is made of."""
    packages = ("celery", "kombu", "redis", "flask", "gunicorn", "gevent")
    return _json(
        Versions(VERSION, platform.python_version(), {name: version(name) for name in packages})
    )
