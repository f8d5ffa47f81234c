"""How the settings of a model become what its replicas need."""

from pathlib import Path

import pytest

from shared.errors import InvalidModel
from shared.model_spec import ModelSpec, bare_spec_of, spec_of
from shared.settings.fields import Settings
from shared.settings.model_settings import ModelSettings, SamplingDefaults

_MODEL = ModelSettings(
    name="m",
    path="m.gguf",
    chat_template="chat.jinja",
    slots=7,
    stop=["x"],
    sampling=SamplingDefaults(top_k=3),
    pin=True,
    ttl_s=9.0,
)


def test_every_setting_but_those_of_the_host_is_in_the_spec() -> None:
    spec = bare_spec_of(_MODEL)
    fields = set(ModelSettings.__struct_fields__) - {"preload", "chat_template"}
    assert fields == set(ModelSpec.__struct_fields__) - {"is_configured", "chat_template"}
    assert all(getattr(spec, field) == getattr(_MODEL, field) for field in fields)
    assert spec.is_configured and spec.chat_template is None


def test_defaults_of_settings_and_spec_are_the_same() -> None:
    bare = bare_spec_of(ModelSettings(name="m", path="m.gguf"))
    assert bare == ModelSpec(name="m", path="m.gguf", is_configured=True)


def test_the_spec_has_the_text_of_the_template(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    spec = spec_of(Settings(base_dir=str(tmp_path)), _MODEL)
    assert spec.chat_template == "{{ messages }}"


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_an_unreadable_template_is_an_invalid_model(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "chat.jinja").write_bytes(content)
    with pytest.raises(InvalidModel, match="chat template of 'm'") as caught:
        spec_of(Settings(base_dir=str(tmp_path)), _MODEL)
    assert caught.value.param == "chat_template"
