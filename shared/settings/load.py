"""Reads the settings from `llmis.toml` and environment variables, and checks them.

The file's path is in `LLMIS_CONFIG` (default `./llmis.toml`, which may be absent). The setting
`web_workers` is overridden by `LLMIS_WEB_WORKERS`, and so on; `redis_url` by `REDIS_URL`.
A value that is not valid raises `SettingsError` with the setting, the value and its source.
"""

import codecs
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from shared.errors import SettingsError
from shared.settings.fields import Settings

_ENV_ALIASES = {"redis_url": "REDIS_URL"}
NOT_IN_ENVIRONMENT = {"models", "base_dir"}
"""Fields that no environment variable overrides."""
_SHOWN_CHARS = 200
"""Of a bad value in its error."""


def env_name(field: str) -> str:
    """The environment variable that overrides a setting."""
    return _ENV_ALIASES.get(field, f"LLMIS_{field.upper()}")


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the file and the environment. Raises SettingsError."""
    path = Path(environ.get("LLMIS_CONFIG", "llmis.toml")).resolve()
    values: dict[str, Any] = {}
    if path.exists():
        try:
            values = msgspec.toml.decode(path.read_bytes().removeprefix(codecs.BOM_UTF8))
        except (msgspec.DecodeError, OSError, ValueError, RecursionError) as exc:
            # The last two: text that is not UTF-8, numbers of thousands of digits, deep nesting.
            raise SettingsError(f"{path}: not readable as TOML: {exc}") from exc
    elif "LLMIS_CONFIG" in environ:
        raise SettingsError(f"LLMIS_CONFIG: no file at {path}")
    values["base_dir"] = str(path.parent)
    sources = dict.fromkeys(values, str(path))
    for field in msgspec.structs.fields(Settings):
        variable = env_name(field.name)
        if field.name not in NOT_IN_ENVIRONMENT and variable in environ:
            values[field.name] = text = environ[variable]
            if field.type == list[str]:
                values[field.name] = [part.strip() for part in text.split(",") if part.strip()]
            sources[field.name] = f"environment variable {variable}"
    try:
        # strict=False converts the environment's "8000" to a number where the field is one.
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as exc:
        raise SettingsError(_explain(str(exc), values, sources)) from exc
    _check(settings, sources)
    return settings


def _explain(message: str, values: dict[str, Any], sources: dict[str, str]) -> str:
    """Add the value and its source to the message of a msgspec.ValidationError."""
    unknown = re.search(r"unknown field `(\w+)`(?: - at `\$(.*)`)?", message)
    if unknown:
        where = f" in {unknown[2].lstrip('.')}" if unknown[2] else ""
        return f"{unknown[1]}: no such setting{where} (see docs/settings.md)"
    at = re.search(r" - at `\$\.?(\w+)(.*?)`$", message)
    if not at:
        return message
    name, rest = at[1], at[2]
    value = values.get(name)
    for part in re.findall(r"\[(\d+)\]|\.(\w+)", rest):
        try:
            value = value[int(part[0])] if part[0] else value[part[1]]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            value = None
            break
    if name.endswith("_password"):
        value = "…"
    reason = message[: at.start()]
    return f"{name}{rest} = {_shown(value)} ({sources.get(name, 'default')}): {reason}"


def _shown(value: object) -> str:
    """A value on one line, cut if it is long."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _check_tokens(settings: Settings) -> None:
    if not settings.jwt_jwks:
        return
    if "://" in settings.jwt_jwks and not settings.jwt_jwks.startswith("https://"):
        raise SettingsError(f"jwt_jwks = {settings.jwt_jwks!r}: must be a file or an https URL")
    for name in ("jwt_issuer", "jwt_audience"):
        if not getattr(settings, name):
            raise SettingsError(
                f"{name} = '': jwt_jwks needs it, or tokens for other services are valid"
            )


def is_loopback(host: str) -> bool:
    """Whether a server on this address is reachable from its own host only. An empty `host` means
    all addresses."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check(settings: Settings, sources: dict[str, str]) -> None:
    """Raises SettingsError for values that the types of the fields cannot exclude."""
    _check_addresses(settings, sources)
    _check_tokens(settings)
    if settings.log_level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise SettingsError(
            f"log_level = {settings.log_level!r} ({sources.get('log_level')}): "
            "must be debug, info, warning or error"
        )
    _check_models(settings)


def _check_addresses(settings: Settings, sources: dict[str, str]) -> None:
    for name in ("host", "flower_host"):
        host = getattr(settings, name)
        if not (is_loopback(host) or settings.auth or settings.open_access):
            raise SettingsError(
                f"{name} = {host!r} ({sources.get(name)}): other hosts can reach this address. Set "
                "auth = true and make a key with `llmis keys create`, or, to let every client do "
                "everything, open_access = true."
            )
    for origin in settings.cors_origins:
        if origin != "*" and re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\sA-Z]+", origin) is None:
            raise SettingsError(
                f"cors_origins: {origin!r} ({sources.get('cors_origins')}) must be an origin as "
                'browsers send it, such as https://chat.example.com, or "*"'
            )
    for name in settings.allowed_hosts:
        if name != "*" and re.fullmatch(r"[^/:\sA-Z]+", name) is None:
            raise SettingsError(
                f"allowed_hosts: {name!r} ({sources.get('allowed_hosts')}) must be a host name in "
                'small letters, without a port, or "*"'
            )


def _check_models(settings: Settings) -> None:
    model_names = [model.name for model in settings.models]
    for name in model_names:
        if model_names.count(name) > 1:
            raise SettingsError(f"models: the name {name!r} is given twice")
    for model in settings.models:
        settings.weights_path(model)
        template = settings.template_path(model)
        if template is not None and not template.is_file():
            raise SettingsError(f"models: chat_template of {model.name!r}: no file at {template}")
