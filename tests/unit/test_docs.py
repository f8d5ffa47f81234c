"""The documents name only what exists."""

import re
from pathlib import Path

import msgspec

from shared.settings import ModelSettings, Settings

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|([^|]*)\|", text, re.MULTILINE))
    for shape in (Settings, ModelSettings):
        for field in msgspec.structs.fields(shape):
            if field.name in ("models", "base_dir"):
                continue
            assert field.name in rows, field.name
            if isinstance(field.default, bool | int | float | str) and field.default != "":
                shown = rows[field.name].strip("` ")
                expected = str(field.default).removesuffix(".0")
                assert shown == expected, field.name
    known = {f.name for s in (Settings, ModelSettings) for f in msgspec.structs.fields(s)}
    assert set(rows) <= known


def test_paths_named_in_the_documents_exist() -> None:
    pattern = re.compile(r"`((?:app|worker|shared|cli|tests|bench|docs|templates)/[\w./-]+)`")
    for document in DOCUMENTS:
        for path in pattern.findall(document.read_text()):
            assert (ROOT / path).exists(), f"{document.name} names {path}"


def test_links_between_the_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links {target}"


def test_make_targets_named_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        for target in re.findall(r"`make ([a-z-]+)", document.read_text()):
            assert target in targets, f"{document.name} names make {target}"


def test_the_project_speaks_of_itself_alone() -> None:
    """No path of a developer's machine."""
    for path in ROOT.rglob("*"):
        is_text = path.suffix in {".py", ".md", ".toml", ".txt", ".html", ".js", ".css", ".jinja"}
        if is_text and not {".venv", "var", ".git"} & set(path.relative_to(ROOT).parts):
            assert "/work/" + "main" not in path.read_text(), path
