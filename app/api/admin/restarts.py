"""The admin API's restarts, one process at a time: `POST /admin/replicas/restart`,
`POST /admin/nodes/restart`, `POST /admin/web/restart`; `GET /admin/web`.

`llmis restart` goes through a whole service with them.
"""

import os
import time

from flask import Flask, Response

from app import admin
from app.admin_answers import Operation, RestartBegun, WebProcess
from app.admin_schemas import RestartNodeRequest, RestartReplicaRequest
from app.documented import documented
from app.generation import read_body
from app.parsing import parse
from app.services import services
from shared.errors import NotFound, QueueUnavailable, Unavailable

blueprint = admin.sibling("restarts")


def register(app: Flask) -> None:
    app.register_blueprint(blueprint)


@blueprint.post("/replicas/restart")
@documented(
    Operation,
    body=RestartReplicaRequest,
    also={202: Operation},
    stream=Operation,
    errors=(*admin.CHANGE_ERRORS, *admin.LOAD_ERRORS, NotFound),
)
def restart_replica() -> Response:
    """Replace a replica by a new one.

    Its requests go on in other replicas of the model. If there is none, the new one is loaded
    first where there is room; else requests wait in the queue. The answers are those of a load.
    """
    body = parse(read_body(), RestartReplicaRequest)
    shared = services()
    shared.directory.refresh()
    record = next((r for r in shared.directory.replicas() if r.id == body.id), None)
    if record is None:
        raise NotFound(f"There is no replica {body.id!r}.", param="id")
    return admin.answer(shared.loader.restart(record), wait=body.wait, stream=body.stream)


@blueprint.post("/nodes/restart")
@documented(RestartBegun, body=RestartNodeRequest, errors=(*admin.CHANGE_ERRORS, NotFound), also={})
def restart_node() -> Response:
    """Start a node's agent anew; its replicas run on.

    `started_at` of `GET /admin/nodes` tells when it has.
    """
    body = parse(read_body(), RestartNodeRequest)
    shared = services()
    shared.directory.refresh()
    if all(node.id != body.id for node in shared.directory.nodes()):
        raise NotFound(f"There is no node {body.id!r}.", param="id")
    asked_at = time.time()
    shared.loader.restart_agent(body.id)
    return admin.json_response(RestartBegun(asked_at=asked_at))


@blueprint.post("/web/restart")
@documented(RestartBegun, errors=(Unavailable, *admin.CHANGE_ERRORS))
def restart_web() -> Response:
    """Replace all web processes of this host by new ones.

    The old ones end when their requests have, after `web_drain_s` at the latest.
    """
    shared = services()
    if shared.reload_web is None:
        raise Unavailable("These web processes have no master that would start new ones.")
    asked_at = time.time()
    shared.reload_web()
    return admin.json_response(RestartBegun(asked_at=asked_at))


@blueprint.get("/web")
@documented(WebProcess, errors=(QueueUnavailable,))
def show_web() -> Response:
    """Tell which web process answers."""
    return admin.json_response(WebProcess(pid=os.getpid(), started_at=services().started_at))
