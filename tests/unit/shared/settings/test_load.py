"""Settings: file, environment, and what is said of a bad value."""

from pathlib import Path

import pytest

from shared.errors import SettingsError
from shared.settings import load


def _load(tmp_path: Path, text: str = "", **environ: str) -> object:
    path = tmp_path / "llmis.toml"
    path.write_text(text)
    return load({"LLMIS_CONFIG": str(path), **environ})


def test_environment_overrides_the_file(tmp_path: Path) -> None:
    settings = _load(tmp_path, "port = 1234\nmodels = []", LLMIS_PORT="4321", REDIS_URL="redis://x")
    assert settings.port == 4321
    assert settings.redis_url == "redis://x"
    assert settings.data_path == tmp_path / "var"


def test_a_list_stands_in_the_environment_with_commas(tmp_path: Path) -> None:
    settings = _load(
        tmp_path,
        "models = []\ncors_origins = ['https://file.example']",
        LLMIS_CORS_ORIGINS="https://a.example, http://localhost:3000",
        LLMIS_ALLOWED_HOSTS="",
    )
    assert settings.cors_origins == ["https://a.example", "http://localhost:3000"]
    assert settings.allowed_hosts == []


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("port = 70000", {}, "port = 70000"),
        ("port = 'web'", {}, "port = 'web'"),
        ("", {"LLMIS_PORT": "abc"}, "port = 'abc' (environment variable LLMIS_PORT)"),
        ("keepalive_s = 0", {}, "keepalive_s = 0"),
        ("colour = 'red'", {}, "colour: no such setting"),
        (
            "[[models]]\nname = 'a'\npath = 'a'\nslotz = 2",
            {},
            "slotz: no such setting in models[0]",
        ),
        ("[[models]]\nname = 'a/b'\npath = 'a'", {}, "models[0].name = 'a/b'"),
        ("[[models]]\nname = 'a'\npath = '../../a'", {}, "leaves the model folder"),
        ("[[models]]\nname = 'a'\npath = 'x'\nchat_template = 'no.jinja'", {}, "no file at"),
        ("port = ", {}, "not readable as TOML"),
        ("log_level = 'loud'", {}, "log_level = 'loud'"),
        ("cors_origins = ['https://a.example/']", {}, "cors_origins: 'https://a.example/'"),
        ("", {"LLMIS_CORS_ORIGINS": "*,a.example"}, "cors_origins: 'a.example' (environment"),
        ("allowed_hosts = ['a.example:80']", {}, "allowed_hosts: 'a.example:80'"),
    ],
)
def test_a_bad_value_is_named(
    tmp_path: Path, text: str, environ: dict[str, str], expected: str
) -> None:
    if "models" not in text and text != "port = ":
        text += "\nmodels = []"
    with pytest.raises(SettingsError) as caught:
        _load(tmp_path, text, **environ)
    assert expected in str(caught.value)


def test_the_same_model_name_twice_is_refused(tmp_path: Path) -> None:
    table = "[[models]]\nname = 'a'\npath = 'a.gguf'\n"
    with pytest.raises(SettingsError, match="given twice"):
        _load(tmp_path, table + table)


def test_a_link_out_of_the_model_folder_is_refused(tmp_path: Path) -> None:
    models = tmp_path / "var" / "models"
    models.mkdir(parents=True)
    (tmp_path / "secret.gguf").write_text("x")
    (models / "link.gguf").symlink_to(tmp_path / "secret.gguf")
    with pytest.raises(SettingsError, match="leaves the model folder"):
        _load(tmp_path, "[[models]]\nname = 'a'\npath = 'link.gguf'")


def test_a_missing_configuration_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no file at"):
        load({"LLMIS_CONFIG": str(tmp_path / "none.toml")})
