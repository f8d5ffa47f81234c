"""Starts loads and unloads: for the admin API, for requests, and when the service starts."""

import logging
import time

import gevent
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from app.catalog import Catalog
from shared import names, operations, registry
from shared.errors import (
    Conflict,
    InsufficientResources,
    InvalidModel,
    LlmisError,
    ModelFailed,
    ModelNotFound,
    ModelUnloaded,
    NoNode,
)
from shared.lifecycle import Failure, ModelSpec, NodeRecord, OperationKind, Progress
from shared.messages import ReplicaRecord
from shared.registry import Directory
from shared.settings import Settings

_log = logging.getLogger(__name__)
_PRELOAD_PATIENCE_S = 60.0


class Loader:
    def __init__(
        self,
        settings: Settings,
        client: "redis.Redis",
        celery: Celery,
        directory: Directory,
        catalog: Catalog,
    ) -> None:
        self._settings = settings
        self._client = client
        self._celery = celery
        self._directory = directory
        self._catalog = catalog

    def load(
        self,
        spec: ModelSpec,
        *,
        replicas: int = 1,
        node: str | None = None,
        deadline_at: float | None = None,
    ) -> str:
        """Begin to load a model, or join the load that is under way; return the operation's id.

        With `deadline_at` (Unix time) a request waits for it, and so may the load, for room.
        Raises NoNode, Conflict, redis.RedisError, kombu.exceptions.OperationalError.
        """
        is_unloading = operations.is_under_way(self._client, OperationKind.UNLOAD, spec.name)
        if is_unloading and deadline_at is None:
            raise Conflict(f"The model {spec.name!r} is being unloaded. Wait for the end of that.")
        nodes = _order(registry.read_nodes(self._client), node)
        if not nodes:
            which = f"The node {node!r} is not alive." if node else "No node is alive."
            raise NoNode(f"{which} Start an agent: llmis agent.")
        operation_id, is_new = operations.begin_load(
            self._client,
            spec,
            replicas=replicas,
            nodes=nodes,
            node=node,
            deadline_at=deadline_at or time.time() + self._settings.load_timeout_s,
            is_on_demand=deadline_at is not None,
        )
        if is_new:
            self._send(names.LOAD_TASK, operation_id, nodes[0])
        elif deadline_at is None:
            self._check_joined(operation_id, spec, replicas)
        return operation_id

    def _check_joined(self, operation_id: str, spec: ModelSpec, replicas: int) -> None:
        """A load that is under way can only be joined as it is. Raises Conflict."""
        command = operations.read_load(self._client, operation_id)
        if command is not None and (command.spec != spec or command.replicas != replicas):
            raise Conflict(
                f"The model {spec.name!r} is just being loaded with other settings. Wait for it, "
                "or unload it first."
            )

    def unload(self, model: str, *, is_now: bool, grace_s: float) -> str:
        """Begin to unload a model everywhere; return the operation's id."""
        nodes = [node.id for node in registry.read_nodes(self._client)]
        if not nodes:
            raise NoNode("No node is alive. Start an agent: llmis agent.")
        operation_id, is_new = operations.begin_unload(
            self._client,
            model,
            grace_s=0.0 if is_now else grace_s,
            # The requests that wait for a configured model load it again.
            is_draining=not is_now and not self._catalog.is_configured(model),
            is_forgotten=not self._catalog.is_configured(model),
            num_nodes=len(nodes),
        )
        if is_new:
            self._client.hdel(names.MODELS, model)
            self._client.hdel(names.FAILURES, model)
            for node in nodes:
                self._send(names.UNLOAD_TASK, operation_id, node)
        return operation_id

    def restart(self, record: ReplicaRecord) -> str:
        """Begin to replace a replica by a new one on its node; return the operation's id.

        Raises Conflict while its model is being loaded or restarted, ModelNotFound.
        """
        spec = self._catalog.spec(record.model)
        if spec is None:
            raise ModelNotFound(f"The model {record.model!r} does not exist.", param="id")
        operation_id, is_new = operations.begin_load(
            self._client,
            spec,
            replicas=1,
            nodes=[record.node],
            node=record.node,
            deadline_at=time.time() + self._settings.load_timeout_s,
            is_on_demand=False,
            replaces=record.id,
        )
        if not is_new:
            raise Conflict(f"The model {record.model!r} is being loaded or restarted already.")
        self._send(names.LOAD_TASK, operation_id, record.node)
        return operation_id

    def restart_agent(self, node: str) -> None:
        """Tell a node's agent to start its program anew."""
        self._send(names.RESTART_AGENT_TASK, None, node)

    def _send(self, task: str, operation_id: str | None, node: str) -> None:
        queue = names.node_queue(node)
        self._celery.send_task(
            task,
            args=[operation_id] if operation_id else [],
            queue=queue,
            ignore_result=True,
            retry=False,
            expires=operations.LOCK_TTL_S,
        )

    # -- for requests ------------------------------------------------------------------------

    def check(self, model: str) -> None:
        """Raise what has kept a model from being loaded a moment ago.

        When one of several replicas was given up, the others still serve, or are started again.
        """
        directory, failure = self._directory, self._directory.failure(model)
        is_fresh = failure is not None and time.time() < failure.retry_at
        has_others = directory.is_coming(model) or directory.is_assigned(model)
        if failure is not None and is_fresh and not has_others:
            raise _for_clients(model, failure)

    def ensure(self, model: str, deadline_at: float) -> Progress | None:
        """See to it that a model without a replica is loaded; return how far that is.

        None = no load is under way: a replica is just being started again. Raises what keeps
        the model from being loaded, redis.RedisError, kombu.exceptions.OperationalError.
        """
        directory = self._directory
        self.check(model)
        under_way = directory.operation(OperationKind.LOAD, model)
        if under_way is not None:
            return under_way
        if directory.is_assigned(model):
            return None
        try:
            spec = self._catalog.spec(model)
        except InvalidModel as exc:
            _log.error("%s is not loaded: %s", model, exc)
            raise _unloadable(model) from exc
        if spec is None:
            raise ModelUnloaded(f"The model {model!r} was unloaded.")
        try:
            operation_id = self.load(spec, deadline_at=deadline_at)
        except NoNode:
            return None  # it may be back in a moment
        events = operations.progress(self._client, operation_id, -1)
        return events[-1] if events else None

    # -- at the start ------------------------------------------------------------------------

    def preload(self) -> None:
        """Load the configured models that want it, as soon as there is a node."""
        wanted = [model.name for model in self._settings.models if model.preload]
        deadline = time.monotonic() + _PRELOAD_PATIENCE_S
        while wanted and time.monotonic() < deadline:
            try:
                self._directory.refresh()
                wanted = [name for name in wanted if not self._try_preload(name)]
            except (redis.RedisError, OperationalError) as exc:
                _log.warning("preloading waits: %s", exc)
            gevent.sleep(0.2)

    def _try_preload(self, name: str) -> bool:
        """Whether the model needs no more attention."""
        if self._directory.is_coming(name) or self._directory.is_assigned(name):
            return True
        try:
            spec = self._catalog.spec(name)
            assert spec is not None, "it is configured"
            self.load(spec)
        except NoNode:
            return False
        except LlmisError as exc:
            _log.error("%s is not preloaded: %s", name, exc)
        return True


def _for_clients(model: str, failure: Failure) -> LlmisError:
    """What a request is told of a load that failed: want of room is its business, paths and
    parameters of the load are its operator's."""
    error = failure.error()
    if not isinstance(error, InsufficientResources):
        error = _unloadable(model)
    error.retry_after_s = max(1, round(failure.retry_at - time.time()))
    return error


def _unloadable(model: str) -> ModelFailed:
    return ModelFailed(f"The model {model!r} cannot be loaded; GET /admin/models says why.")


def _order(nodes: list[NodeRecord], wanted: str | None) -> list[str]:
    """The nodes to be asked: the one with most free memory first."""
    fitting = [node for node in nodes if wanted is None or node.id == wanted]
    fitting.sort(key=lambda node: -max(device.free_bytes for device in node.devices))
    return [node.id for node in fitting]
