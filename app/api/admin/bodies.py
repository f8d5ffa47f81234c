"""The request bodies of the admin API."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from shared import names
from shared.errors import Conflict, InvalidRequest
from shared.lifecycle import ModelSpec
from shared.settings import Task

ModelName = Annotated[str, Meta(pattern=names.MODEL_NAME_PATTERN)]


_SPEC_FIELDS = (
    *("path", "engine", "task", "device", "quant", "context_length", "slots", "threads"),
    *("cache_tokens", "draft", "draft_tokens", "pin", "ttl_s"),
    *("chat_template", "stop", "strip_leading_space"),
)
ShortText = Annotated[str, Meta(max_length=64)]


class LoadRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /admin/models/load`. What is null is taken from the settings, or a default."""

    name: ModelName
    path: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    """Under the model folder of the nodes."""
    engine: ShortText | None = None
    task: Task | None = None
    device: ShortText | None = None
    quant: ShortText | None = None
    context_length: Annotated[int, Meta(ge=64, le=4_194_304)] | None = None
    slots: Annotated[int, Meta(ge=1, le=256)] | None = None
    cache_tokens: Annotated[int, Meta(ge=0, le=2**40)] | None = None
    draft: Annotated[str, Meta(max_length=1024)] | None = None
    draft_tokens: Annotated[int, Meta(ge=1, le=15)] | None = None
    threads: Annotated[int, Meta(ge=0, le=1024)] | None = None
    chat_template: Annotated[str, Meta(max_length=200_000)] | None = None
    """The Jinja text itself."""
    stop: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]],
                    Meta(max_length=16)] | None = None  # fmt: skip
    strip_leading_space: bool | None = None
    pin: bool | None = None
    ttl_s: Annotated[float, Meta(ge=0)] | None = None
    replicas: Annotated[int, Meta(ge=1, le=64)] = 1
    node: Annotated[str, Meta(max_length=64)] | None = None
    """Load it there and nowhere else."""
    wait: bool = False
    stream: bool = False

    def spec(self, known: ModelSpec | None) -> ModelSpec:
        """The model to load: what is known of it, changed by what is given here.

        Raises InvalidRequest, Conflict.
        """
        given = {f: getattr(self, f) for f in _SPEC_FIELDS if getattr(self, f) is not None}
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
    timeout_s: Annotated[float, Meta(ge=0, le=86_400)] | None = None
    """What runs longer than this is broken off; null = `request_timeout_s`."""
    wait: bool = False
    stream: bool = False
