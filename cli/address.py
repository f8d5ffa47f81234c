"""Where the service is, and which settings file holds."""

import os
from collections.abc import Mapping
from pathlib import Path

from cli.errors import CliError
from shared import settings as settings_module
from shared.errors import SettingsError
from shared.settings import Settings

SOURCE_TREE = Path(__file__).resolve().parent.parent
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def environment() -> dict[str, str]:
    """The environment; where the working directory has no llmis.toml, the source tree's holds.

    So `llmis` finds its service and its models from any folder.
    """
    found = dict(os.environ)
    own_file = SOURCE_TREE / "llmis.toml"
    if "LLMIS_CONFIG" not in found and not Path("llmis.toml").exists() and own_file.exists():
        found["LLMIS_CONFIG"] = str(own_file)
    return found


def url_from_settings(environ: Mapping[str, str] | None = None) -> str:
    """The address that a service with these settings has here. Raises CliError."""
    try:
        return url_of(settings_module.load(environ or environment()))
    except SettingsError as exc:
        raise CliError(f"{exc} (--url or LLMIS_URL names the service without settings)") from exc


def url_of(settings: Settings) -> str:
    host = _EVERYWHERE.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
