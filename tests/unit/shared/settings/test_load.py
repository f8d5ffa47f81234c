"""Settings: file, environment, and what is said of a bad value."""

from pathlib import Path

import msgspec
import pytest

from app.api.admin.bodies import LoadRequest
from app.schemas.parse import parse
from shared.errors import InvalidRequest, SettingsError
from shared.settings.fields import Settings
from shared.settings.load import env_name, load
from shared.settings.model_settings import DEMO_MODEL, ModelSettings, SamplingDefaults
from tests.conftest import ROOT


def _load(tmp_path: Path, text: str = "", **environ: str) -> object:
    path = tmp_path / "llmis.toml"
    path.write_text(text)
    return load({"LLMIS_CONFIG": str(path), **environ})


def test_environment_overrides_the_file(tmp_path: Path) -> None:
    settings = _load(tmp_path, "port = 1234\nmodels = []", LLMIS_PORT="4321", REDIS_URL="redis://x")
    assert settings.port == 4321
    assert settings.redis_url == "redis://x"
    assert settings.data_path == tmp_path / "var"


def test_the_file_of_the_source_tree_has_the_demo_model_and_it_is_greedy() -> None:
    settings = load({"LLMIS_CONFIG": str(ROOT / "llmis.toml")})
    assert settings.models == [DEMO_MODEL]
    assert DEMO_MODEL.sampling.temperature == 0
    assert msgspec.structs.replace(settings, base_dir=".") == Settings()


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


def _numbers(shape: type) -> list[str]:
    """The fields of a class of settings that are numbers."""
    kinds = (msgspec.inspect.IntType, msgspec.inspect.FloatType)
    info = msgspec.inspect.type_info(shape)
    assert isinstance(info, msgspec.inspect.StructType)
    found = [(f.name, getattr(f.type, "types", (f.type,))) for f in info.fields]
    return [name for name, types in found if any(isinstance(kind, kinds) for kind in types)]


_ENDLESS = ["inf", "-inf", "nan", "1e18", "1e300", str(10**18), str(10**30), "-1"]
_PLACES = {
    Settings: "models = []\n{}",
    ModelSettings: "[[models]]\nname = 'a'\npath = 'a'\n{}",
    SamplingDefaults: "[[models]]\nname = 'a'\npath = 'a'\n[models.sampling]\n{}",
}
_MAY_BE_NEGATIVE = ("presence_penalty", "frequency_penalty")


@pytest.mark.parametrize(
    ("shape", "name"), [(shape, name) for shape in _PLACES for name in _numbers(shape)]
)
def test_every_number_has_two_ends(tmp_path: Path, shape: type, name: str) -> None:
    for value in _ENDLESS[: 7 if name in _MAY_BE_NEGATIVE else None]:
        with pytest.raises(SettingsError) as caught:
            _load(tmp_path, _PLACES[shape].format(f"{name} = {value}"))
        assert f"{name} = " in str(caught.value), value
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", _numbers(Settings))
def test_so_has_every_number_in_the_environment(tmp_path: Path, name: str) -> None:
    for value in _ENDLESS:
        with pytest.raises(SettingsError, match=f"^{name} = .*environment variable"):
            _load(tmp_path, "models = []", **{env_name(name): value})


@pytest.mark.parametrize("name", [n for n in _numbers(LoadRequest) if n not in ("wait", "stream")])
def test_so_has_every_number_of_a_load(name: str) -> None:
    for value in ("1e999", "NaN", "Infinity", "1e18", str(10**30), "-1"):
        body = f'{{"name": "a", "{name}": {value}}}'.encode()
        with pytest.raises(InvalidRequest):
            parse(body, LoadRequest)


@pytest.mark.parametrize(
    "text", ["port = 1" + "0" * 5000, "a = " + "[" * 3000 + "]" * 3000, "port = '\udc00"]
)
def test_a_file_that_python_cannot_read_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "llmis.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(SettingsError, match="not readable as TOML") as caught:
        load({"LLMIS_CONFIG": str(path)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["0x" + "f" * 5000, "'" + "9" * 5000 + "'"])
def test_a_long_value_is_cut_in_its_error(tmp_path: Path, value: str) -> None:
    with pytest.raises(SettingsError, match=r"^port = ") as caught:
        _load(tmp_path, f"models = []\nport = {value}")
    assert len(str(caught.value)) < 500


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


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    settings = _load(tmp_path, "\ufeffport = 1234\nmodels = []")
    assert settings.port == 1234
