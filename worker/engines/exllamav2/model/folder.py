"""The JSON files of a Hugging Face model folder, read once by the loading thread, never written."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import SettingsError


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The contents of the files. An absent file is an empty dict."""

    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tokenizer_config: dict[str, Any]
    tokenizer: dict[str, Any]
    chat_template: str | None
    tool_use_template: str | None = None
    """The template for requests with tools, if there is one of that name."""


def read_folder(path: Path) -> ModelFolder:
    """Raises SettingsError if config.json or tokenizer.json is missing or not a JSON object."""
    if not path.is_dir():
        raise SettingsError(f"models: {path} is not a folder; exllamav2 loads Hugging Face folders")
    if not any(path.glob("*.safetensors")):
        raise SettingsError(f"models: there is no .safetensors file in {path}")
    tokenizer_config = _read(path / "tokenizer_config.json", is_needed=False)
    templates = _templates(path, tokenizer_config)
    return ModelFolder(
        path=path,
        config=_read(path / "config.json", is_needed=True),
        generation_config=_read(path / "generation_config.json", is_needed=False),
        tokenizer_config=tokenizer_config,
        tokenizer=_read(path / "tokenizer.json", is_needed=True),
        chat_template=templates.get("default") or next(iter(templates.values()), None),
        tool_use_template=templates.get("tool_use"),
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
        raise SettingsError(f"models: {path} is not a JSON object")
    return value


def _templates(path: Path, tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """The templates by name: in files of their own in newer folders, in the tokenizer's config in
    older."""
    files = {p.stem: p for p in sorted((path / "additional_chat_templates").glob("*.jinja"))}
    if (path / "chat_template.jinja").is_file():
        files = {"default": path / "chat_template.jinja"} | files
    if files:
        return {name: _text(file) for name, file in files.items()}
    for declared in (
        tokenizer_config.get("chat_template"),
        _read(path / "chat_template.json", is_needed=False).get("chat_template"),
    ):
        if isinstance(declared, str):
            return {"default": declared}
        if isinstance(declared, list):
            named = [(t.get("name"), t.get("template")) for t in declared if isinstance(t, dict)]
            found = {name: t for name, t in named if isinstance(name, str) and isinstance(t, str)}
            if found:
                return found
    return {}


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"models: {file} cannot be read: {exc}") from exc
