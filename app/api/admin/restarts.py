"""The admin API's restarts of single processes: `POST /admin/replicas/restart`,
`POST /admin/nodes/restart`, `POST /admin/web/restart`; `GET /admin/web`.

`llmis restart` uses them to restart a whole service, one process after the other.
"""

import os

from flask import Response

from app.api import json_response
from app.api.admin.blueprint import guarded
from app.api.admin.bodies import RestartNodeRequest, RestartReplicaRequest
from app.api.admin.operations import answer
from app.middleware.body import read_body
from app.openapi.documented import documented
from app.openapi.error_sets import CHANGE_ERRORS, LOAD_ERRORS
from app.schemas.parse import parse
from app.services import services
from shared.admin_api import Operation, RestartBegun, WebProcess
from shared.clock import clock
from shared.errors import NotFound, QueueUnavailable, Unavailable

blueprint = guarded("restarts")


@blueprint.post("/replicas/restart")
@documented(
    Operation,
    body=RestartReplicaRequest,
    also={202: Operation},
    stream=Operation,
    errors=(*CHANGE_ERRORS, *LOAD_ERRORS, NotFound),
)
def restart_replica() -> Response:
    """Replace a replica by a new one.

    Its requests go on in other replicas of the model. If there is none, the new one is loaded
    first where there is room; else requests wait in the queue. The answers are those of a load.
    """
    body = parse(read_body(), RestartReplicaRequest)
    parts = services()
    parts.directory.refresh()
    record = next((r for r in parts.directory.replicas() if r.id == body.id), None)
    if record is None:
        raise NotFound(f"There is no replica {body.id!r}.", param="id")
    return answer(parts.loader.restart(record), wait=body.wait, stream=body.stream)


@blueprint.post("/nodes/restart")
@documented(RestartBegun, body=RestartNodeRequest, errors=(*CHANGE_ERRORS, NotFound), also={})
def restart_node() -> Response:
    """Start a node's agent anew; its replicas run on.

    It is done when `started_at` of `GET /admin/nodes` changes.
    """
    body = parse(read_body(), RestartNodeRequest)
    parts = services()
    parts.directory.refresh()
    if all(node.id != body.id for node in parts.directory.nodes()):
        raise NotFound(f"There is no node {body.id!r}.", param="id")
    asked_at = clock.now()
    parts.loader.restart_agent(body.id)
    return json_response.of(RestartBegun(asked_at=asked_at))


@blueprint.post("/web/restart")
@documented(RestartBegun, errors=(Unavailable, *CHANGE_ERRORS))
def restart_web() -> Response:
    """Replace all web processes of this host by new ones.

    The old ones end when their requests have, after `web_drain_s` at the latest.
    """
    parts = services()
    if parts.reload_web is None:
        raise Unavailable("These web processes have no gunicorn master that could start new ones.")
    asked_at = clock.now()
    parts.reload_web()
    return json_response.of(RestartBegun(asked_at=asked_at))


@blueprint.get("/web")
@documented(WebProcess, errors=(QueueUnavailable,))
def show_web() -> Response:
    """Show which web process answers."""
    return json_response.of(WebProcess(pid=os.getpid(), started_at=services().started_at))
