"""The admin API: load and unload models, and what runs where.

`POST /admin/models/load`, `POST /admin/models/unload`, `GET /admin/operations/<id>`,
`GET /admin/models`, `GET /admin/nodes`.
"""

import time
from collections.abc import Iterator
from typing import Any

import gevent
import msgspec
import redis
from flask import Blueprint, Flask, Response, request, stream_with_context

from app import admin_views, sse
from app.admin_answers import AdminModelList, NodeList, Operation
from app.admin_schemas import LoadRequest, UnloadRequest
from app.catalog import ModelState
from app.documented import documented
from app.errors import from_exception
from app.generation import read_body
from app.parsing import parse
from app.services import services
from app.wording import END
from shared import operations
from shared.errors import (
    Conflict,
    InsufficientMemory,
    InvalidModel,
    LlmisError,
    ModelFailed,
    ModelNotFound,
    NoNode,
    NotFound,
    QueueUnavailable,
    ReplicaLost,
    TooManyModels,
    Unavailable,
    UnsupportedMediaType,
)
from shared.lifecycle import ModelSpec, Progress

_POLL_S = 0.1
_RETRY_S = 0.5
_LAST_WORDS_S = 2.5
"""Who breaks an operation off takes its lock first; its node says why soon after."""
CHANGE_ERRORS = (Conflict, NoNode, QueueUnavailable, Unavailable, UnsupportedMediaType)
LOAD_ERRORS = (InvalidModel, InsufficientMemory, TooManyModels, ModelFailed, ReplicaLost)
"""Why a load fails: only who waits for its end gets one as the answer."""


def _check_media_type() -> None:
    """A page of another origin cannot send JSON without asking first, and is not answered."""
    if request.method == "POST" and request.mimetype != "application/json":
        raise UnsupportedMediaType("The header Content-Type must be application/json.")


def sibling(name: str) -> Blueprint:
    """A blueprint under the same prefix, guarded in the same way."""
    made = Blueprint(name, __name__, url_prefix="/admin")
    made.before_request(_check_media_type)
    return made


blueprint = sibling("admin")


def register(app: Flask) -> None:
    app.register_blueprint(blueprint)


@blueprint.post("/models/load")
@documented(
    Operation,
    body=LoadRequest,
    example={"name": "gemma-3-270m", "wait": True},
    also={202: Operation},
    stream=Operation,
    errors=(*CHANGE_ERRORS, *LOAD_ERRORS),
)
def load() -> Response:
    """Load a model, or more replicas of it.

    202 with the operation as it begins; 200 with its end when `wait` is set; with `stream` an
    event for each step on the way.
    """
    body = parse(read_body(), LoadRequest)
    shared = services()
    shared.directory.refresh()
    spec = body.spec(shared.catalog.spec(body.name))
    _check_not_other(spec)
    operation_id = shared.loader.load(spec, replicas=body.replicas, node=body.node)
    return answer(operation_id, wait=body.wait, stream=body.stream)


@blueprint.post("/models/unload")
@documented(
    Operation,
    body=UnloadRequest,
    example={"name": "gemma-3-270m", "wait": True},
    also={202: Operation},
    stream=Operation,
    errors=(*CHANGE_ERRORS, ModelNotFound),
)
def unload() -> Response:
    """Unload a model on all nodes.

    The answers are those of a load.
    """
    body = parse(read_body(), UnloadRequest)
    shared = services()
    shared.directory.refresh()
    is_loading = shared.catalog.state(body.name) is ModelState.LOADING
    if not shared.catalog.is_known(body.name) and not is_loading:
        raise ModelNotFound(f"The model {body.name!r} does not exist.", param="name")
    timeout_s = body.timeout_s
    if timeout_s is None:
        timeout_s = shared.settings.request_timeout_s
    operation_id = shared.loader.unload(body.name, is_now=body.mode == "now", grace_s=timeout_s)
    return answer(operation_id, wait=body.wait, stream=body.stream)


@blueprint.get("/operations/<operation_id>")
@documented(
    Operation,
    errors=(NotFound, QueueUnavailable),
    parameters={"operation_id": "The `id` of the answer that began it."},
)
def show_operation(operation_id: str) -> Response:
    """Tell where a load or an unload stands."""
    return json_response(admin_views.operation(_last(operation_id)))


@blueprint.get("/models")
@documented(AdminModelList, errors=(QueueUnavailable,))
def list_models() -> Response:
    """List all models with their replicas."""
    shared = services()
    shared.directory.refresh()
    views = [admin_views.model(shared, name) for name in shared.catalog.names()]
    return json_response(AdminModelList(data=views))


@blueprint.get("/nodes")
@documented(NodeList, errors=(QueueUnavailable,))
def list_nodes() -> Response:
    """List the hosts and their memory."""
    shared = services()
    shared.directory.refresh()
    views = [admin_views.node(node, shared.directory) for node in shared.directory.nodes()]
    return json_response(NodeList(data=views))


def _check_not_other(spec: ModelSpec) -> None:
    """A model that is loaded cannot be loaded otherwise. Raises Conflict."""
    shared = services()
    if not shared.directory.is_coming(spec.name):
        return
    loaded = shared.catalog.spec(spec.name)
    if loaded is not None and loaded != spec:
        fields = [f for f in spec.__struct_fields__ if getattr(spec, f) != getattr(loaded, f)]
        raise Conflict(
            f"The model {spec.name!r} is loaded with another {', '.join(fields)}. Unload it first.",
            param=fields[0],
        )


def answer(operation_id: str, *, wait: bool, stream: bool) -> Response:
    """Answer with an operation: as it is, at its end, or every step of it."""
    if stream:
        return Response(stream_with_context(_stream(operation_id)), headers=sse.HEADERS)
    if not wait:
        return json_response(admin_views.operation(_last(operation_id)), 202)
    for progress in _follow(operation_id):
        if progress is not None and progress.is_ended:
            services().directory.refresh()
            if progress.failure is not None:
                raise progress.failure.error()
            return json_response(admin_views.operation(progress))
    raise AssertionError("an operation ends")


def _stream(operation_id: str) -> Iterator[bytes]:
    quiet_since = time.monotonic()
    try:
        for progress in _follow(operation_id):
            if progress is not None:
                if progress.is_ended:
                    services().directory.refresh()
                yield sse.event(admin_views.operation(progress))
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > services().settings.keepalive_s:
                yield sse.keepalive(None)
                quiet_since = time.monotonic()
        yield sse.event(END)
    except (LlmisError, redis.RedisError) as exc:
        yield sse.event(from_exception(exc).body())


def _follow(operation_id: str) -> Iterator[Progress | None]:
    """The operation's progress to its end; None for each pause without news.

    Short outages of Redis are bridged. Raises NotFound, redis.RedisError.
    """
    last, seen = _last(operation_id), 0
    heard_at = time.monotonic()
    """When the operation was known to be worked on."""
    while True:
        try:
            events = operations.progress(services().client, operation_id, seen)
            is_lost = not events and operations.is_lost(services().client, last)
        except redis.RedisError:
            if time.monotonic() - heard_at > operations.LOCK_TTL_S:
                raise
            yield None
            gevent.sleep(_RETRY_S)
            continue
        for last in events:
            seen += 1
            yield last
            if last.is_ended:
                return
        if not is_lost:
            heard_at = time.monotonic()
        elif time.monotonic() - heard_at > _LAST_WORDS_S:
            yield operations.lost(last)
            return
        yield None
        gevent.sleep(_POLL_S)


def _last(operation_id: str) -> Progress:
    """Where an operation stands. Raises NotFound."""
    client = services().client
    events = operations.progress(client, operation_id, -1)
    if not events:
        raise NotFound(f"There is no operation {operation_id!r}, or it ended long ago.", param="id")
    last = events[-1]
    if last.is_ended or not operations.is_lost(client, last):
        return last
    last = operations.progress(client, operation_id, -1)[-1]
    return last if last.is_ended else operations.lost(last)


def json_response(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, content_type="application/json")
