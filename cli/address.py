"""Where the service is, which settings file holds, and which API key."""

import os
from pathlib import Path

from cli.errors import CliError
from shared import settings as settings_module
from shared.errors import SettingsError
from shared.settings import Settings

SOURCE_TREE = Path(__file__).resolve().parent.parent
KEY_VARIABLE = "LLMIS_API_KEY"
_ALL_IPV4 = "0.0.0.0"  # nosec B104 # compared, not bound
_EVERYWHERE = {"": "127.0.0.1", _ALL_IPV4: "127.0.0.1", "::": "::1"}


def environment() -> dict[str, str]:
    """The environment; where the working directory has no llmis.toml, the source tree's holds.

    So `llmis` finds its service and its models from any folder.
    """
    found = dict(os.environ)
    own_file = SOURCE_TREE / "llmis.toml"
    if "LLMIS_CONFIG" not in found and not Path("llmis.toml").exists() and own_file.exists():
        found["LLMIS_CONFIG"] = str(own_file)
    return found


def settings_here() -> Settings:
    """The settings of the service on this machine. Raises CliError."""
    try:
        return settings_module.load(environment())
    except SettingsError as exc:
        raise CliError(f"{exc} (--url or LLMIS_URL names the service without settings)") from exc


def url_of(settings: Settings) -> str:
    return url_at(settings.host, settings.port)


def url_at(host: str, port: int) -> str:
    """Where what listens on that address is found from here."""
    host = _EVERYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def key_for(settings: Settings) -> str:
    """The API key for the service of the settings: the one of `llmis up` is for no other one.
    Empty when there is none, or it may not be read."""
    given = os.environ.get(KEY_VARIABLE)
    if given:
        return given
    try:
        return own_key_path(settings).read_text("utf-8").strip()
    except OSError:
        return ""


def own_key_path(settings: Settings) -> Path:
    """The file with the API key of `llmis up`, while that runs."""
    return settings.data_path / "admin.key"
