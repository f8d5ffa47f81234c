"""What models there are, and how each one is: the settings and the registry seen together."""

from enum import StrEnum

from shared.lifecycle import ModelSpec, OperationKind, outline_of, spec_of
from shared.messages import ReplicaState
from shared.registry import Directory
from shared.settings import Settings

_FRESH_S = 0.1
"""Who asks for unknown models makes the registry be read this often at most."""


class ModelState(StrEnum):
    READY = "ready"
    LOADING = "loading"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    FAILED = "failed"


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

    def is_known(self, name: str) -> bool:
        """Whether a model can be asked for. One that was loaded a moment ago is found, too."""
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
        """Whether a model is being unloaded for good: a configured one may come back."""
        return (
            self._directory.operation(OperationKind.UNLOAD, name) is not None
            and self._settings.model(name) is None
        )

    def is_configured(self, name: str) -> bool:
        return self._settings.model(name) is not None

    def spec(self, name: str) -> ModelSpec | None:
        """How to load a model. None = nobody says. Raises InvalidModel: unreadable template."""
        configured = self._settings.model(name)
        if configured is not None:
            return spec_of(self._settings, configured)
        return self._directory.specs().get(name)

    def outline(self, name: str) -> ModelSpec | None:
        """How a model is set up, as far as that is known without reading a file."""
        configured = self._settings.model(name)
        return outline_of(configured) if configured else self._directory.specs().get(name)

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
