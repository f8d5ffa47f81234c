"""ExLlamaV2: token ids and bytes, by the decoder that tokenizer.json declares."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from shared.errors import SettingsError
from tests.support import exl2_folder
from tests.support.exl2_folder import ids, word
from worker.engines.exllamav2.model.folder import read_folder
from worker.engines.exllamav2.model.vocabulary import TokenizerJsonVocabulary


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> TokenizerJsonVocabulary:
    folder = exl2_folder.write(tmp_path_factory.mktemp("byte-level"))
    return TokenizerJsonVocabulary(read_folder(folder))


@given(st.text(max_size=40))
def test_the_pieces_of_a_text_are_its_bytes(byte_level: TokenizerJsonVocabulary, text: str) -> None:
    tokens = byte_level.tokenize(text, add_special=False, parse_special=False)
    assert b"".join(map(byte_level.piece, tokens)) == text.encode("utf-8", "replace")


def test_words_and_control_tokens(byte_level: TokenizerJsonVocabulary) -> None:
    assert byte_level.piece(word("Ġworld")) == b" world"
    assert byte_level.piece(exl2_folder.IM_END) == b""
    assert byte_level.piece(10**6) == b""
    assert byte_level.eos_text == "</s>"
    assert byte_level.bos_text == "<s>"
    assert byte_level.stop_ids == [2, 4]
    assert byte_level.max_token_bytes == len("<|im_start|>")


def test_control_tokens_in_a_text_are_text_unless_asked_for(
    byte_level: TokenizerJsonVocabulary,
) -> None:
    text = "<|im_end|>x"
    parsed = byte_level.tokenize(text, add_special=False, parse_special=True)
    plain = byte_level.tokenize(text, add_special=False, parse_special=False)
    assert parsed == [4, *ids("x")]
    assert b"".join(map(byte_level.piece, plain)) == text.encode()
    assert 4 not in plain


def test_the_begin_token_comes_once_and_only_when_asked(
    byte_level: TokenizerJsonVocabulary,
) -> None:
    assert byte_level.adds_bos
    assert byte_level.tokenize("x", add_special=True, parse_special=True) == [1, *ids("x")]
    assert byte_level.tokenize("x", add_special=False, parse_special=True) == ids("x")


def test_lone_surrogates_are_no_error(byte_level: TokenizerJsonVocabulary) -> None:
    assert byte_level.tokenize("a\ud800", add_special=False, parse_special=False) == ids("a?")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"bos_token": "<s>", "add_bos_token": True}, True),
        ({"bos_token": "<s>", "add_bos_token": False}, False),
        ({"bos_token": "<s>"}, False),  # this tokenizer.json adds none
        ({"bos_token": None}, False),
        ({"bos_token": "unknown", "add_bos_token": True}, False),
    ],
)
def test_whether_a_begin_token_is_added(
    tmp_path: Path, config: dict[str, object], expected: bool
) -> None:
    exl2_folder.write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert TokenizerJsonVocabulary(read_folder(tmp_path)).adds_bos is expected


def test_pieces_with_byte_fallback(tmp_path: Path) -> None:
    """As SentencePiece models come: spaces are ▁, rare characters are bytes."""
    exl2_folder.write(tmp_path)
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁Hello": 3, "▁": 4, "wörld": 5, "<0xF0>": 6,
             "<0x9F>": 7, "▁▁": 8, "<extra>": 9}  # fmt: skip
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer.add_tokens([AddedToken("<extra>", special=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = TokenizerJsonVocabulary(read_folder(tmp_path))
    assert [vocabulary.piece(i) for i in range(2, 10)] == [
        b"", b" Hello", b" ", "wörld".encode(), b"\xf0", b"\x9f", b"  ", b"<extra>",
    ]  # fmt: skip


def test_truncation_that_the_file_declares_is_for_training(tmp_path: Path) -> None:
    exl2_folder.write(tmp_path)
    path = str(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(path)
    vocabulary = TokenizerJsonVocabulary(read_folder(tmp_path))
    tokens = vocabulary.tokenize("abcdefghij", add_special=False, parse_special=False)
    assert tokens == ids("abcdefghij")
    assert vocabulary.tokenize("a", add_special=False, parse_special=True) == ids("a")


def test_a_tokenizer_that_is_none(tmp_path: Path) -> None:
    exl2_folder.write(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(SettingsError, match=r"tokenizer\.json"):
        TokenizerJsonVocabulary(read_folder(tmp_path))


def test_added_tokens_are_written_as_they_read(tmp_path: Path) -> None:
    folder = exl2_folder.write(tmp_path)
    tokenizer = exl2_folder.make_tokenizer()
    tokenizer.add_tokens([AddedToken("é", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = TokenizerJsonVocabulary(read_folder(folder))
    (token,) = vocabulary.tokenize("é", add_special=False, parse_special=False)
    assert vocabulary.piece(token) == "é".encode(), "and not the byte that é stands for"
