"""`GET /healthz` (alive), `GET /readyz` (can answer), `GET /version`."""

import platform
from importlib.metadata import version
from typing import Any

import msgspec
import redis
from flask import Blueprint, Flask, Response

from app.catalog import Catalog, ModelState
from app.services import services
from shared.messages import ReplicaRecord, ReplicaState
from shared.registry import Directory
from shared.version import VERSION

blueprint = Blueprint("health", __name__)
_FRESH_S = 0.1
_STALLED_S = 30.0
"""An engine that has jobs and made no step for this long makes no progress."""


def register(app: Flask) -> None:
    app.register_blueprint(blueprint)


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, content_type="application/json")


@blueprint.get("/healthz")
def healthz() -> Response:
    return _json({"status": "ok"})


@blueprint.get("/readyz")
def readyz() -> Response:
    """Ready when Redis answers and a replica is ready whose engine makes progress, or none is
    loaded and the first request would load one."""
    shared = services()
    reasons = []
    try:
        shared.client.ping()
    except redis.RedisError:
        reasons.append("Redis does not answer")
    if not shared.hub.is_connected:
        reasons.append("the pub/sub connection is down")
    is_served = _is_served(shared.directory)
    if not is_served and not reasons:
        # The copy of the registry is up to a second old.
        shared.directory.refresh_if_older(_FRESH_S)
        is_served = _is_served(shared.directory)
    if not is_served and not _waits_for_demand(shared.catalog, shared.directory):
        reasons.append("no replica is ready")
    if reasons:
        return _json({"status": "not ready", "reasons": reasons}, 503)
    return _json({"status": "ready"})


def _is_served(directory: Directory) -> bool:
    return any(_is_healthy(record) for record in directory.replicas())


def _waits_for_demand(catalog: Catalog, directory: Directory) -> bool:
    """Whether nothing is loaded because nobody asked: the first request loads its model."""
    states = {catalog.state(name) for name in catalog.names()}
    return states == {ModelState.UNLOADED} and bool(directory.nodes())


def _is_healthy(record: ReplicaRecord) -> bool:
    return record.state is ReplicaState.READY and record.step_age_s < _STALLED_S


@blueprint.get("/version")
def show_version() -> Response:
    packages = ("celery", "kombu", "redis", "flask", "gunicorn", "gevent")
    return _json(
        {
            "version": VERSION,
            "python": platform.python_version(),
            "packages": {name: version(name) for name in packages},
        }
    )
