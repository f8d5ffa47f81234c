"""What a replica needs to load its model, and how the settings give it."""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shared import names
from shared.errors import InvalidModel
from shared.settings.fields import Settings
from shared.settings.model_settings import ModelSettings, SamplingDefaults


class ModelSpec(Struct, frozen=True, kw_only=True):
    """A model as any node can load it: `ModelSettings` without the paths of one host, except that
    of the weights in the model folder."""

    name: Annotated[str, Meta(pattern=names.MODEL_NAME_PATTERN)]
    path: str
    """Relative to the model folder of the node."""
    engine: str = "auto"
    task: str = "auto"
    """generate, embed, or auto."""
    device: str = "auto"
    quant: str = "f16"
    """Precision of the KV cache."""
    package: str | None = None
    context_length: int = 4096
    slots: int = 4
    cache_tokens: int = 0
    """Tokens of the KV cache, all slots together; 0 = slots × context_length."""
    draft: str = ""
    """Folder of a draft model, or `ngram`; empty = no speculation."""
    draft_tokens: int = 4
    threads: int = 0
    chat_template: str | None = None
    """The Jinja text; None = the model's own."""
    stop: list[str] = []
    strip_leading_space: bool = False
    sampling: SamplingDefaults = SamplingDefaults()
    pin: bool = False
    """Never evicted, and never unloaded because it is idle."""
    ttl_s: float = 0.0
    """Unloaded after this time without a request; 0 = never."""
    is_configured: bool = False
    """From the settings, so any request can load it again."""


def spec_of(settings: Settings, model: ModelSettings) -> ModelSpec:
    """The spec of a configured model. Raises InvalidModel if its template is unreadable."""
    template = settings.template_path(model)
    try:
        text = template.read_text("utf-8") if template else None
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidModel(
            f"The chat template of {model.name!r} cannot be read: {exc}", param="chat_template"
        ) from exc
    return msgspec.structs.replace(bare_spec_of(model), chat_template=text)


def bare_spec_of(model: ModelSettings) -> ModelSpec:
    """The spec of a configured model without its chat template, which is in a file."""
    others = ("preload", "chat_template")
    values = {f: getattr(model, f) for f in ModelSettings.__struct_fields__ if f not in others}
    return ModelSpec(**values, is_configured=True)
