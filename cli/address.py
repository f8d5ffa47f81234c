"""Address of the service, its settings file and its API key."""

import os
from pathlib import Path

from cli.errors import CliError
from shared.errors import SettingsError
from shared.settings.fields import Settings
from shared.settings.load import load as load_settings

SOURCE_TREE = Path(__file__).resolve().parent.parent
KEY_VARIABLE = "LLMIS_API_KEY"
_ALL_IPV4 = "0.0.0.0"  # nosec B104 # compared, not bound
_ALL_ADDRESSES = {"": "127.0.0.1", _ALL_IPV4: "127.0.0.1", "::": "::1"}


def environment() -> dict[str, str]:
    """The environment, with `LLMIS_CONFIG` set where it can be found.

    Without an llmis.toml in the working directory the source tree's is used, so that `llmis`
    finds its service and its models from any folder.
    """
    found = dict(os.environ)
    own_file = SOURCE_TREE / "llmis.toml"
    if "LLMIS_CONFIG" not in found and not Path("llmis.toml").exists() and own_file.exists():
        found["LLMIS_CONFIG"] = str(own_file)
    return found


def settings_here(hint: str = "") -> Settings:
    """The settings of the service on this machine. `hint` follows an error. Raises CliError."""
    try:
        return load_settings(environment())
    except SettingsError as exc:
        raise CliError(f"{exc}{hint}") from exc


def url_of(settings: Settings) -> str:
    return url_at(settings.host, settings.port)


def url_at(host: str, port: int) -> str:
    """The URL on this machine of a server that listens on that address."""
    host = _ALL_ADDRESSES.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def key_for(settings: Settings) -> str:
    """The API key for the service of the settings; empty if there is none or it is unreadable. The
    key file of `llmis up` is valid for that service alone."""
    given = os.environ.get(KEY_VARIABLE)
    if given:
        return given
    try:
        return own_key_path(settings).read_text("utf-8").strip()
    except OSError:
        return ""


def own_key_path(settings: Settings) -> Path:
    """The file with the API key of `llmis up`; it exists while that runs."""
    return settings.data_path / "admin.key"
