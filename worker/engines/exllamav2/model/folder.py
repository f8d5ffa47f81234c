"""The JSON files of a Hugging Face model folder, read once. Runs in the loading thread.

Nothing here writes into the folder.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import SettingsError


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What the folder declares. A file that is absent is an empty dict."""

    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tokenizer_config: dict[str, Any]
    tokenizer: dict[str, Any]
    chat_template: str | None


def read_folder(path: Path) -> ModelFolder:
    """Raises SettingsError where config.json or tokenizer.json is missing or no JSON object."""
    if not path.is_dir():
        raise SettingsError(f"models: {path} is no folder; exllamav2 loads Hugging Face folders")
    if not any(path.glob("*.safetensors")):
        raise SettingsError(f"models: there is no .safetensors file in {path}")
    tokenizer_config = _read(path / "tokenizer_config.json", is_needed=False)
    return ModelFolder(
        path=path,
        config=_read(path / "config.json", is_needed=True),
        generation_config=_read(path / "generation_config.json", is_needed=False),
        tokenizer_config=tokenizer_config,
        tokenizer=_read(path / "tokenizer.json", is_needed=True),
        chat_template=_chat_template(path, tokenizer_config),
    )


def text_of(token: Any) -> str:
    """The text of a token as tokenizer_config.json writes it: a string, or an object with one."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _read(path: Path, *, is_needed: bool) -> dict[str, Any]:
    if not path.is_file() and not is_needed:
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        raise SettingsError(f"models: {path} cannot be read as JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise SettingsError(f"models: {path} holds no JSON object")
    return value


def _chat_template(path: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The template where the folder's age has put it: a file of its own, or the tokenizer's."""
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise SettingsError(f"models: {file} cannot be read: {exc}") from exc
    for declared in (
        tokenizer_config.get("chat_template"),
        _read(path / "chat_template.json", is_needed=False).get("chat_template"),
    ):
        if isinstance(declared, str):
            return declared
        if isinstance(declared, list):  # several, each with a name
            named = {t.get("name"): t.get("template") for t in declared if isinstance(t, dict)}
            template = named.get("default") or next(iter(named.values()), None)
            if isinstance(template, str):
                return template
    return None
