"""The documents name only what exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
HISTORY = ROOT / "docs" / "lab-log.md"
"""It names files as they were called when something was measured."""


def test_paths_named_in_the_documents_exist() -> None:
    pattern = re.compile(
        r"`((?:app|worker|shared|cli|tests|bench|docs|templates|examples|deploy)/[\w./-]+)`"
    )
    for document in set(DOCUMENTS) - {HISTORY}:
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
        is_text = path.suffix in {
            *(".py", ".md", ".toml", ".txt", ".html", ".js", ".mjs", ".sh", ".css", ".jinja")
        }
        if is_text and not {".venv", "var", ".git"} & set(path.relative_to(ROOT).parts):
            assert "/work/" + "main" not in path.read_text(), path


def test_every_folder_of_the_source_is_in_the_table_of_rooms() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"^\| `((?:app|worker|shared|cli)/\w+)`", text, re.MULTILINE))
    there = {
        f"{side}/{folder.name}"
        for side in ("app", "worker", "shared", "cli")
        for folder in (ROOT / side).iterdir()
        if folder.is_dir() and folder.name != "__pycache__"
    }
    assert named == there
