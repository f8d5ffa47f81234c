"""docs/settings.md lists the settings as `shared.settings.load` has them."""

import msgspec
import pytest

from shared.settings.fields import Settings
from shared.settings.model_settings import ModelSettings, SamplingDefaults
from tools.marked_tables import filled
from tools.settings_table import DOCUMENT, UndocumentedError, tables


def test_the_tables_are_those_that_make_tables_writes() -> None:
    text = DOCUMENT.read_text()
    assert filled(text, tables()) == text, "run `make tables`"


def test_every_setting_has_its_row() -> None:
    text = DOCUMENT.read_text()
    for shape in (Settings, ModelSettings, SamplingDefaults):
        for name in msgspec.structs.fields(shape):
            assert (f"\n| `{name.name}` |" in text) == (name.name != "base_dir")


def test_a_setting_without_a_docstring_is_an_error() -> None:
    class Newer(Settings, frozen=True, kw_only=True):
        mood: str = "good"

    source = 'class Newer:\n    mood: str = "good"\n    weight: int = 1\n    """Grams."""\n'
    with pytest.raises(UndocumentedError, match="has no docstring"):
        tables(Newer, source)
