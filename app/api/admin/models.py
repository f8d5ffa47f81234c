"""The admin API's models and nodes: `POST /admin/models/load`, `POST /admin/models/unload`,
`GET /admin/operations/<id>`, `GET /admin/models`, `GET /admin/nodes`."""

from flask import Response

from app.api import json_response
from app.api.admin import objects
from app.api.admin.blueprint import guarded
from app.api.admin.bodies import LoadRequest, UnloadRequest
from app.api.admin.operations import answer, latest
from app.middleware.body import read_body
from app.openapi.documented import documented
from app.openapi.error_sets import CHANGE_ERRORS, LOAD_ERRORS
from app.schemas.parse import parse
from app.services import Services, services
from shared.admin_api import AdminModelList, NodeList, Operation
from shared.errors import Conflict, ModelNotFound, NotFound, QueueUnavailable
from shared.model_spec import ModelSpec
from shared.wire.records import ModelState

blueprint = guarded("admin")


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
    parts = services()
    parts.directory.refresh()
    spec = body.spec(parts.catalog.spec(body.name))
    _check_same(parts, spec)
    operation_id = parts.loader.load(spec, replicas=body.replicas, node=body.node)
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
    parts = services()
    parts.directory.refresh()
    is_loading = parts.catalog.state(body.name) is ModelState.LOADING
    if not parts.catalog.is_known(body.name) and not is_loading:
        raise ModelNotFound(f"The model {body.name!r} does not exist.", param="name")
    timeout_s = body.timeout_s
    if timeout_s is None:
        timeout_s = parts.settings.request_timeout_s
    operation_id = parts.loader.unload(body.name, is_now=body.mode == "now", grace_s=timeout_s)
    return answer(operation_id, wait=body.wait, stream=body.stream)


@blueprint.get("/operations/<operation_id>")
@documented(
    Operation,
    errors=(NotFound, QueueUnavailable),
    parameters={"operation_id": "The `id` of the answer that began it."},
)
def show_operation(operation_id: str) -> Response:
    """Show the progress of a load or unload."""
    return json_response.of(objects.operation(latest(services().client, operation_id)))


@blueprint.get("/models")
@documented(AdminModelList, errors=(QueueUnavailable,))
def list_models() -> Response:
    """List all models with their replicas."""
    parts = services()
    parts.directory.refresh()
    views = [objects.model(parts, name) for name in parts.catalog.names()]
    return json_response.of(AdminModelList(data=views))


@blueprint.get("/nodes")
@documented(NodeList, errors=(QueueUnavailable,))
def list_nodes() -> Response:
    """List the hosts and their memory."""
    parts = services()
    parts.directory.refresh()
    views = [objects.node(node, parts.directory) for node in parts.directory.nodes()]
    return json_response.of(NodeList(data=views))


def _check_same(parts: Services, spec: ModelSpec) -> None:
    """A loaded model cannot be loaded with other settings. Raises Conflict."""
    if not parts.directory.is_coming(spec.name):
        return
    loaded = parts.catalog.spec(spec.name)
    if loaded is not None and loaded != spec:
        fields = [f for f in spec.__struct_fields__ if getattr(spec, f) != getattr(loaded, f)]
        raise Conflict(
            f"The model {spec.name!r} is loaded with another {', '.join(fields)}. Unload it first.",
            param=fields[0],
        )
