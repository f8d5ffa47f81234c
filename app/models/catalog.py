"""Which models exist, and the state of each: the settings and the registry taken together."""

from shared.model_spec import ModelSpec, bare_spec_of, spec_of
from shared.registry.directory import Directory
from shared.settings.fields import Settings
from shared.wire.operations import OperationKind
from shared.wire.records import Capability, ModelState, ReplicaState

_FRESH_S = 0.1
"""Requests for unknown models make the registry be read once in this time at most."""


class Catalog:
    def __init__(self, settings: Settings, directory: Directory) -> None:
        self._settings = settings
        self._directory = directory

    def names(self) -> list[str]:
        """Models that can be asked for, the configured ones first."""
        configured = [model.name for model in self._settings.models]
        others = {record.model for record in self._directory.replicas()}
        others |= set(self._directory.specs()) | self._directory.loading()
        return configured + sorted(others - set(configured))

    def first_generating(self) -> str | None:
        """The model that a request without one is for: the first that is configured and does not
        embed, else the first of the others."""
        return next((name for name in self.names() if not self._embeds(name)), None)

    def _embeds(self, name: str) -> bool:
        """By its settings, else by what a replica has found in its file."""
        spec = self.bare_spec(name)
        found = [replica.capabilities for replica in self._directory.replicas(name)]
        return (spec is not None and spec.task == "embed") or [Capability.EMBEDDING] in found

    def is_known(self, name: str) -> bool:
        """Whether a model can be asked for. Reads the registry again before it says no: a model may
        have been loaded since the last beat. Raises redis.RedisError."""
        if self._is_in_copy(name):
            return True
        self._directory.refresh_if_older(_FRESH_S)
        return self._is_in_copy(name)

    def _is_in_copy(self, name: str) -> bool:
        return (
            self._settings.model(name) is not None
            or name in self._directory.specs()
            or name in self._directory.loading()
            or bool(self._directory.replicas(name))
        )

    def is_leaving(self, name: str) -> bool:
        """Whether a model is being unloaded for good: a configured one may be loaded again."""
        return (
            self._directory.operation(OperationKind.UNLOAD, name) is not None
            and self._settings.model(name) is None
        )

    def is_configured(self, name: str) -> bool:
        return self._settings.model(name) is not None

    def spec(self, name: str) -> ModelSpec | None:
        """How to load a model; None = unknown. Raises InvalidModel: unreadable template."""
        configured = self._settings.model(name)
        if configured is not None:
            return spec_of(self._settings, configured)
        return self._directory.specs().get(name)

    def bare_spec(self, name: str) -> ModelSpec | None:
        """How a model is set up, without its template, which would have to be read from a file."""
        configured = self._settings.model(name)
        return bare_spec_of(configured) if configured else self._directory.specs().get(name)

    def state(self, name: str) -> ModelState:
        directory = self._directory
        if directory.operation(OperationKind.UNLOAD, name) is not None:
            return ModelState.UNLOADING
        if directory.is_served(name):
            return ModelState.READY
        if (
            directory.is_coming(name)
            or directory.operation(OperationKind.LOAD, name) is not None
            or directory.is_assigned(name)
        ):
            return ModelState.LOADING
        if any(r.state is ReplicaState.DRAINING for r in directory.replicas(name)):
            return ModelState.UNLOADING
        return ModelState.FAILED if directory.failure(name) else ModelState.UNLOADED
