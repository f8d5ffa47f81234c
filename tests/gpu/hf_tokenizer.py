"""A tokenizer.json whose vocabulary is known word by word: bytes, added tokens, whole words.

Byte-level BPE as most current models have it, in the format of the `tokenizers` library. The
words stand with the space before them, and each one's merges lead letter by letter from the
space to its end; so a text of known words is one token a word, and any other text is bytes.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNK, BOS, EOS = 0, 1, 2
SPECIAL = ("<unk>", "<s>", "</s>")
_SPACE = "\u0120"
"""How byte-level BPE writes a space."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Ids in this order: SPECIAL, the 256 bytes, `added`, `words`."""

    added: tuple[str, ...]
    """Tokens that are recognised wherever they stand, and shown as text."""
    words: tuple[str, ...]
    """Without their space. Each word's beginnings must be words, too, and come before it."""

    @property
    def size(self) -> int:
        return len(SPECIAL) + 256 + len(self.added) + len(self.words)

    @property
    def first_word(self) -> int:
        """Token id of the first word; the others follow in order."""
        return self.size - len(self.words)

    def byte(self, value: int) -> int:
        return len(SPECIAL) + value

    def added_token(self, text: str) -> int:
        return len(SPECIAL) + 256 + self.added.index(text)

    def text(self, token: int) -> bytes:
        """What a token stands for in an output."""
        if token < len(SPECIAL):
            return b""
        if token < len(SPECIAL) + 256:
            return bytes([token - len(SPECIAL)])
        if token < self.first_word:
            return self.added[token - len(SPECIAL) - 256].encode()
        return b" " + self.words[token - self.first_word].encode()


def write(vocabulary: Vocabulary, folder: Path, chat_template: str) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(vocabulary)))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "bos_token": SPECIAL[BOS],
        "eos_token": SPECIAL[EOS],
        "unk_token": SPECIAL[UNK],
        "chat_template": chat_template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def _tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    letters = byte_letters()
    pieces = [*SPECIAL, *letters, *vocabulary.added, *(_SPACE + w for w in vocabulary.words)]
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    added = [_added(i, text, special=True) for i, text in enumerate(SPECIAL)]
    added += [_added(vocabulary.added_token(t), t, special=False) for t in vocabulary.added]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        # The first word of a prompt gets its space, as SentencePiece does it for the GGUF model.
        "pre_tokenizer": {**byte_level, "add_prefix_space": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special(BOS), {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [_special(BOS), *({"Sequence": {"id": s, "type_id": 0}} for s in "AB")],
            "special_tokens": {
                SPECIAL[BOS]: {"id": SPECIAL[BOS], "ids": [BOS], "tokens": [SPECIAL[BOS]]}
            },
        },
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": SPECIAL[UNK],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": [[_SPACE + word[:-1], word[-1]] for word in vocabulary.words],
        },
    }


def _added(token: int, text: str, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": text, **flags, "special": special}


def _special(token: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": SPECIAL[token], "type_id": 0}}


def byte_letters() -> list[str]:
    """The letter for each byte: printable ones stand for themselves, the others are moved up.

    Source: openai/gpt-2, src/encoder.py, bytes_to_unicode.
    """
    printable = {*_span("!", "~"), *_span("¡", "¬"), *_span("®", "ÿ")}
    moved = iter(range(256, 512))
    return [chr(byte if byte in printable else next(moved)) for byte in range(256)]


def _span(first: str, last: str) -> Iterable[int]:
    return range(ord(first), ord(last) + 1)
