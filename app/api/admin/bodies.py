"""The request bodies of the admin API."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from shared import names
from shared.admin_api import MAX_UNLOAD_S
from shared.errors import Conflict, InvalidRequest
from shared.model_spec import ModelSpec
from shared.settings.model_settings import (
    CacheTokens,
    ContextLength,
    DraftTokens,
    IdleSeconds,
    Slots,
    Task,
    Threads,
)

ModelName = Annotated[str, Meta(pattern=names.MODEL_NAME_PATTERN)]
ShortText = Annotated[str, Meta(max_length=64)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
_NOT_OF_THE_SPEC = {"name", "replicas", "node", "wait", "stream"}
"""Fields of a load that say nothing of how the model is set up."""


class LoadRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /admin/models/load`. What is null is taken from the settings, or a default."""

    name: ModelName
    path: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    """Under the model folder of the nodes."""
    engine: ShortText | None = None
    task: Task | None = None
    device: ShortText | None = None
    quant: ShortText | None = None
    context_length: ContextLength | None = None
    slots: Slots | None = None
    cache_tokens: CacheTokens | None = None
    draft: Annotated[str, Meta(max_length=1024)] | None = None
    draft_tokens: DraftTokens | None = None
    threads: Threads | None = None
    chat_template: Annotated[str, Meta(max_length=200_000)] | None = None
    """The Jinja text itself."""
    stop: Annotated[list[StopString], Meta(max_length=16)] | None = None
    strip_leading_space: bool | None = None
    pin: bool | None = None
    ttl_s: IdleSeconds | None = None
    replicas: Annotated[int, Meta(ge=1, le=64)] = 1
    node: Annotated[str, Meta(max_length=64)] | None = None
    """Load it there and nowhere else."""
    wait: bool = False
    stream: bool = False

    def spec(self, known: ModelSpec | None) -> ModelSpec:
        """The model to load: its known settings, with those changed that are given here. Raises
        InvalidRequest, Conflict."""
        given = {
            field: value
            for field, value in msgspec.structs.asdict(self).items()
            if field not in _NOT_OF_THE_SPEC and value is not None
        }
        if "\0" in given.get("path", ""):
            raise InvalidRequest("path must not hold a null character.", param="path")
        if known is not None:
            return self._changed(known, given)
        if self.path is None:
            raise InvalidRequest(
                f"The model {self.name!r} is not configured: path says where its weights are.",
                param="path",
            )
        return ModelSpec(name=self.name, **given)

    def _changed(self, known: ModelSpec, given: dict[str, Any]) -> ModelSpec:
        changed = msgspec.structs.replace(known, **given)
        if known.is_configured and changed != known:
            param = next(f for f, value in given.items() if getattr(known, f) != value)
            raise Conflict(
                f"The model {self.name!r} is configured with another {param}. Change llmis.toml, "
                "or load it under another name.",
                param=param,
            )
        return changed


class RestartReplicaRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /admin/replicas/restart`."""

    id: Annotated[str, Meta(min_length=1, max_length=256)]
    """Of `GET /admin/models`."""
    wait: bool = False
    stream: bool = False


class RestartNodeRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /admin/nodes/restart`."""

    id: Annotated[str, Meta(min_length=1, max_length=256)]
    """Of `GET /admin/nodes`."""


class UnloadRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /admin/models/unload`."""

    name: ModelName
    mode: Literal["drain", "now"] = "drain"
    timeout_s: Annotated[float, Meta(ge=0, le=MAX_UNLOAD_S)] | None = None
    """What runs longer than this is broken off; null = `request_timeout_s`."""
    wait: bool = False
    stream: bool = False
