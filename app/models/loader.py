"""Sends loads, unloads and restarts to the agents: for the admin API, for requests, at the start.

Runs in the caller's greenlet. An agent does the work; `shared.registry.operations` has its
progress.
"""

import logging
import time
from dataclasses import dataclass

import gevent
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from app.models.catalog import Catalog
from shared import errors, names
from shared.clock import clock
from shared.errors import Conflict, LlmisError, ModelFailed, ModelNotFound, NoNode
from shared.model_spec import ModelSpec
from shared.registry import operations, records
from shared.registry.directory import Directory
from shared.settings.fields import Settings
from shared.wire.operations import Failure, OperationKind, OperationProgress
from shared.wire.records import NodeRecord, ReplicaRecord

_log = logging.getLogger(__name__)
_PRELOAD_LIMIT_S = 60.0
"""How long a start waits for a node that can load."""
_PRELOAD_RETRY_S = 0.2


@dataclass(frozen=True, slots=True)
class Loader:
    _settings: Settings
    _client: "redis.Redis"
    _celery: Celery
    _directory: Directory
    _catalog: Catalog

    def load(
        self,
        spec: ModelSpec,
        *,
        replicas: int = 1,
        node: str | None = None,
        deadline_at: float | None = None,
    ) -> str:
        """Begin to load a model, or join its running load; return the operation's id.

        `deadline_at` (Unix time): the load is on demand of a request, and may wait for memory until
        then.
        Raises NoNode, Conflict, redis.RedisError, kombu.exceptions.OperationalError.
        """
        is_unloading = operations.is_under_way(self._client, OperationKind.UNLOAD, spec.name)
        if is_unloading and deadline_at is None:
            raise Conflict(f"The model {spec.name!r} is being unloaded. Wait until that has ended.")
        nodes = _by_free_memory(records.read_nodes(self._client), node)
        if not nodes:
            which = f"The node {node!r} is not alive." if node else "No node is alive."
            raise NoNode(f"{which} Start an agent: llmis agent.")
        operation_id, is_new = operations.begin_load(
            self._client,
            spec,
            replicas=replicas,
            nodes=nodes,
            node=node,
            deadline_at=deadline_at or clock.now() + self._settings.load_timeout_s,
            is_on_demand=deadline_at is not None,
        )
        if is_new:
            self._send(names.LOAD_TASK, operation_id, nodes[0])
        elif deadline_at is None:
            self._check_joined(operation_id, spec, replicas, node)
        return operation_id

    def _check_joined(
        self, operation_id: str, spec: ModelSpec, replicas: int, node: str | None
    ) -> None:
        """A running load can only be joined with its own settings. Raises Conflict."""
        command = operations.read_load(self._client, operation_id)
        if command is None:
            return
        is_elsewhere = node is not None and command.node != node
        if is_elsewhere or command.spec != spec or command.replicas != replicas:
            raise Conflict(
                f"The model {spec.name!r} is just being loaded with other settings. Wait for it, "
                "or unload it first."
            )

    def unload(self, model: str, *, is_now: bool, grace_s: float) -> str:
        """Begin to unload a model on all nodes; return the operation's id. Raises NoNode,
        redis.RedisError, kombu.exceptions.OperationalError.

        Running requests may go on for `grace_s`, unless `is_now`.
        """
        nodes = [node.id for node in records.read_nodes(self._client)]
        if not nodes:
            raise NoNode("No node is alive. Start an agent: llmis agent.")
        operation_id, is_new = operations.begin_unload(
            self._client,
            model,
            grace_s=0.0 if is_now else grace_s,
            # Waiting requests for a configured model load it again, so they stay queued.
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
        """Begin to replace a replica by a new one on its node; return the operation's id. Raises
        Conflict while its model is being loaded or restarted, ModelNotFound."""
        spec = self._catalog.spec(record.model)
        if spec is None:
            raise ModelNotFound(f"The model {record.model!r} does not exist.", param="id")
        operation_id, is_new = operations.begin_load(
            self._client,
            spec,
            replicas=1,
            nodes=[record.node],
            node=record.node,
            deadline_at=clock.now() + self._settings.load_timeout_s,
            is_on_demand=False,
            replaces=record.id,
        )
        if not is_new:
            raise Conflict(f"The model {record.model!r} is being loaded or restarted already.")
        self._send(names.LOAD_TASK, operation_id, record.node)
        return operation_id

    def restart_agent(self, node: str) -> None:
        """Make a node's agent restart its program."""
        self._send(names.RESTART_AGENT_TASK, None, node)

    def _send(self, task: str, operation_id: str | None, node: str) -> None:
        # Without `expires`, which is a time of this host's clock: an agent that gets a command too
        # late finds that its lock has expired.
        self._celery.send_task(
            task,
            args=[operation_id] if operation_id else [],
            queue=names.node_queue(node),
            ignore_result=True,
            retry=False,
        )

    # -- for requests ------------------------------------------------------------------------

    def check(self, model: str) -> None:
        """Raise the error of a load that failed a moment ago.

        Not while other replicas of the model serve or are being started.
        """
        directory, failure = self._directory, self._directory.failure(model)
        is_fresh = failure is not None and failure.holds_at(clock.now())
        has_others = directory.is_coming(model) or directory.is_assigned(model)
        if failure is not None and is_fresh and not has_others:
            raise _for_clients(model, failure)

    def ensure(self, model: str, deadline_at: float) -> OperationProgress | None:
        """Load a model without replicas unless it is being loaded; return the load's progress.

        None = an agent is restarting a replica, or no node is alive at the moment. Raises the error
        that prevents the load, redis.RedisError, kombu.exceptions.OperationalError.
        """
        directory = self._directory
        self.check(model)
        running = directory.operation(OperationKind.LOAD, model)
        if running is not None:
            return running
        if directory.is_assigned(model):
            return None
        try:
            spec = self._catalog.spec(model)
        except errors.InvalidModel as exc:
            _log.error("%s is not loaded: %s", model, exc)
            raise _unloadable(model) from exc
        if spec is None:
            raise errors.ModelUnloaded(f"The model {model!r} was unloaded.")
        try:
            operation_id = self.load(spec, deadline_at=deadline_at)
        except NoNode:
            return None  # a node may be back in a moment
        events = operations.progress(self._client, operation_id, -1)
        return events[-1] if events else None

    # -- at the start ------------------------------------------------------------------------

    def preload(self) -> None:
        """Load the models with `preload`, as soon as a node is alive."""
        wanted = [model.name for model in self._settings.models if model.preload]
        deadline = time.monotonic() + _PRELOAD_LIMIT_S
        while wanted and time.monotonic() < deadline:
            try:
                self._directory.refresh()
                wanted = [name for name in wanted if not self._try_preload(name)]
            except (redis.RedisError, OperationalError) as exc:
                _log.warning("preloading waits: %s", exc)
            gevent.sleep(_PRELOAD_RETRY_S)

    def _try_preload(self, name: str) -> bool:
        """Whether the model needs no further try."""
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
    """The error that requests get for a failed load. Paths and parameters of a load are for its
    operator alone; lack of memory or room is named."""
    error = failure.error()
    if not isinstance(error, errors.InsufficientResources):
        error = _unloadable(model)
    error.retry_after_s = max(1, round(failure.retry_at - clock.now()))
    return error


def _unloadable(model: str) -> ModelFailed:
    return ModelFailed(f"The model {model!r} cannot be loaded; GET /admin/models says why.")


def _by_free_memory(nodes: list[NodeRecord], wanted: str | None) -> list[str]:
    """Ids of the nodes that may load, the one with most free memory first."""
    fitting = [node for node in nodes if wanted is None or node.id == wanted]
    fitting.sort(key=lambda node: -max(device.free_bytes for device in node.devices))
    return [node.id for node in fitting]
