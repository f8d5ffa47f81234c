"""`GET /healthz` and its other names (alive), `GET /readyz` (can answer), `GET /version`."""

import platform
from importlib.metadata import version
from typing import Literal

import redis
from flask import Blueprint, Response
from msgspec import Struct

from app.api import json_response
from app.auth.scopes import LIVENESS
from app.models.catalog import Catalog
from app.openapi.documented import documented
from app.services import services
from shared import names
from shared.registry.directory import Directory
from shared.settings.fields import Settings
from shared.version import VERSION
from shared.wire.records import ModelState, ReplicaState

blueprint = Blueprint("health", __name__)
_FRESH_S = 0.1
"""Probes make the registry be read once in this time at most."""


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


@documented(Alive)
def healthz() -> Response:
    """Check that the web process is alive."""
    return json_response.of(Alive())


for _path in LIVENESS:
    blueprint.add_url_rule(_path, _path[1:].replace("/", "_"), healthz)


@blueprint.get("/readyz")
@documented(Ready, also={503: NotReady})
def readyz() -> Response:
    """Check whether requests would be answered.

    They are when Redis takes them and a replica is ready that makes progress if it has jobs, or
    none is loaded and the first request would load one.
    """
    parts = services()
    reasons = []
    try:
        parts.client.set(names.PROBE, 1, ex=60)
    except redis.OutOfMemoryError:
        reasons.append("Redis has no memory left")
    except redis.ResponseError as exc:
        reasons.append(f"Redis takes no requests: {exc}")
    except redis.RedisError:
        reasons.append("Redis does not answer")
    if not parts.hub.is_connected:
        reasons.append("the pub/sub connection is down")
    is_served = _is_served(parts.directory, parts.settings)
    if not is_served and not reasons:
        # The copy of the registry may be a beat old.
        parts.directory.refresh_if_older(_FRESH_S)
        is_served = _is_served(parts.directory, parts.settings)
    if not is_served and not _waits_for_demand(parts.catalog, parts.directory):
        reasons.append("no replica is ready")
    if reasons:
        return json_response.of(NotReady(reasons=reasons), 503)
    return json_response.of(Ready())


def _is_served(directory: Directory, settings: Settings) -> bool:
    return any(
        record.state is ReplicaState.READY and not record.is_stalled(settings.stall_timeout_s)
        for record in directory.replicas()
    )


def _waits_for_demand(catalog: Catalog, directory: Directory) -> bool:
    """Whether all models are unloaded and a node is alive: the first request loads its model."""
    states = {catalog.state(name) for name in catalog.names()}
    return states == {ModelState.UNLOADED} and bool(directory.nodes())


@blueprint.get("/version")
@documented(Versions)
def show_version() -> Response:
    """Show the versions of llmis and its packages."""
    packages = ("celery", "kombu", "redis", "flask", "gunicorn", "gevent")
    versions = {name: version(name) for name in packages}
    return json_response.of(Versions(VERSION, platform.python_version(), versions))
