"""A GGUF file's vocabulary: how texts become tokens, and vocabularies that cannot be used."""

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from shared.errors import InvalidRequest, SettingsError
from tests.support.vocabulary_model import BYTES, SPECIALS, Entries, letters, write
from worker.engines.base import EngineSettings
from worker.engines.llamacpp.engine import LlamaCppEngine
from worker.replica.process import warm_up

_FEW = SPECIALS + BYTES + letters("ab")
"""SentencePiece writes a space as U+2581, which is none of these: three byte tokens each."""
_SPACE = [3 + byte for byte in "\u2581".encode()]


def _load(
    path: Path,
    entries: Entries,
    tokenizer: str = "llama",
    more: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
) -> LlamaCppEngine:
    write(path / "m.gguf", entries, tokenizer, more)
    return LlamaCppEngine(EngineSettings(path / "m.gguf", 512, 2, 1))


@pytest.mark.parametrize("num_spaces", [1, 4, 5, 80, 4000])
def test_a_text_may_have_more_tokens_than_bytes(tmp_path: Path, num_spaces: int) -> None:
    vocabulary = _load(tmp_path, _FEW).vocabulary
    tokens = vocabulary.tokenize(" " * num_spaces + "a", add_special=True, parse_special=False)
    # One space more: SentencePiece puts one before every text.
    assert tokens == [1, *_SPACE * (1 + num_spaces), len(_FEW) - 2]


@pytest.mark.parametrize(
    ("tokenizer", "more", "name"),
    [
        ("t5", lambda writer: writer.add_add_bos_token(True), "bos"),
        ("rwkv", lambda writer: writer.add_add_eos_token(True), "eos"),
    ],
)
def test_a_vocabulary_without_the_token_that_it_adds_is_refused(
    tmp_path: Path, tokenizer: str, more: Callable[[gguf.GGUFWriter], object], name: str
) -> None:
    with pytest.raises(SettingsError, match=f"add_{name}_token.* no {name.upper()} token"):
        _load(tmp_path, _FEW, tokenizer, more)


def test_a_unigram_vocabulary_that_adds_none_works(tmp_path: Path) -> None:
    engine = _load(tmp_path, _FEW, "t5")
    assert engine.vocabulary.bos_text == ""
    warm_up(engine)
    tokens = engine.vocabulary.tokenize("ab", add_special=True, parse_special=False)
    assert b"".join(map(engine.vocabulary.piece, tokens)).strip() == b"ab"


def test_a_text_that_the_vocabulary_cannot_spell_is_refused(tmp_path: Path) -> None:
    vocabulary = _load(tmp_path, SPECIALS + letters("ab"), "rwkv").vocabulary
    assert len(vocabulary.tokenize("ab", add_special=True, parse_special=False)) == 2
    with pytest.raises(InvalidRequest, match="no token for a part of the text"):
        vocabulary.tokenize("abc", add_special=True, parse_special=False)
