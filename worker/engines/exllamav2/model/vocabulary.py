"""A tokenizer.json vocabulary: text to token ids, and token ids to bytes.

ExLlamaV2's own tokenizer gives texts, in which half a character is lost as U+FFFD; streaming
needs the bytes. They follow from the decoder that the file declares: byte-level BPE (GPT-2's
table), or pieces with byte fallback (SentencePiece). All architectures of
`model_config.ARCHITECTURES` use one of the two.
"""

import re
from collections.abc import Iterator
from typing import Any

from llguidance import LLTokenizer
from tokenizers import Tokenizer

from shared.errors import SettingsError
from worker.engines.exllamav2.model.folder import ModelFolder, text_of
from worker.engines.exllamav2.model.stop_tokens import special_tokens, stop_tokens
from worker.foreign import foreign_errors
from worker.vocabulary import FillInMiddle

_FALLBACK_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_FILL_IN_MIDDLE = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, Gemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
)
"""Marks of prefix, suffix and gap. The families are those of llama-vocab.cpp."""
_NORMALISER_SHRINKS = 3
"""Composing characters shortens a text by at most this factor, in bytes of UTF-8."""


class TokenizerJsonVocabulary:
    """See `worker.vocabulary.Vocabulary` for the contract."""

    def __init__(self, folder: ModelFolder) -> None:
        """Raises SettingsError."""
        self._path = path = folder.path / "tokenizer.json"
        # Two instances, because reading control tokens in a text is a property of the instance.
        self._parsing = _load(path.as_posix())
        self._plain = _load(path.as_posix())
        self._plain.encode_special_tokens = True
        token_id_of: dict[str, int] = self._parsing.get_vocab(with_added_tokens=True)
        self.size = 1 + max(token_id_of.values(), default=-1)
        if not self.size:
            raise SettingsError(f"models: the vocabulary in {path} is empty")
        self.control_tokens = special_tokens(folder)
        specials = set(self.control_tokens.values())
        self._names = {token: text.encode() for text, token in self.control_tokens.items()}
        to_bytes = _Decoder(folder.tokenizer)
        # Added tokens are written as plain text, not in the characters of the byte table.
        added = {token.content for token in self._parsing.get_added_tokens_decoder().values()}
        self._pieces = [b""] * self.size
        for text, token_id in token_id_of.items():
            if token_id not in specials:
                self._pieces[token_id] = to_bytes(text, is_added=text in added)
        longest = max(len(text.encode("utf-8", "replace")) for text in token_id_of)
        shrinks = _NORMALISER_SHRINKS if folder.tokenizer.get("normalizer") else 1
        self.max_token_bytes = shrinks * longest
        self.stop_ids = stop_tokens(folder, token_id_of)
        self._bos = _begin_token(folder, token_id_of)
        self.bos_text = self._parsing.id_to_token(self._bos) if self._bos is not None else ""
        self.eos_text = text_of(folder.tokenizer_config.get("eos_token"))
        if not self.eos_text and self.stop_ids:
            self.eos_text = self._parsing.id_to_token(self.stop_ids[0])
        self.adds_bos = self._bos is not None and self._wants_bos(folder)
        self.fill_in_middle = _fill_in_middle(token_id_of)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        tokenizer = self._parsing if parse_special else self._plain
        # JSON can carry a lone surrogate, which cannot be encoded.
        clean = text.encode("utf-8", "replace").decode()
        tokens: list[int] = tokenizer.encode(clean, add_special_tokens=False).ids
        if add_special and self.adds_bos:
            assert self._bos is not None, "adds_bos says that there is one"
            tokens.insert(0, self._bos)
        return tokens

    def name(self, token: int) -> bytes:
        return self._names.get(token) or self.piece(token)

    def piece(self, token: int) -> bytes:
        return self._pieces[token] if 0 <= token < self.size else b""

    def new_llguidance_tokenizer(self) -> LLTokenizer:
        """The same vocabulary for grammars. Raises ValueError for an unknown kind."""
        return LLTokenizer(self._path.read_text("utf-8"), eos_token=self.stop_ids or None)

    def _wants_bos(self, folder: ModelFolder) -> bool:
        """By `add_bos_token` if declared, else by what the file's post-processor adds to an empty
        text."""
        declared = folder.tokenizer_config.get("add_bos_token")
        if isinstance(declared, bool):
            return declared
        return self._bos in self._parsing.encode("", add_special_tokens=True).ids


def _load(path: str) -> Any:
    with foreign_errors(lambda exc: SettingsError(f"models: {path} cannot be loaded: {exc}")):
        tokenizer = Tokenizer.from_file(path)
    # A file's lengths are for training; a prompt is never truncated or padded.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _begin_token(folder: ModelFolder, token_id_of: dict[str, int]) -> int | None:
    text = text_of(folder.tokenizer_config.get("bos_token"))
    if text in token_id_of:
        return token_id_of[text]
    declared = folder.config.get("bos_token_id")
    is_id = isinstance(declared, int) and declared in token_id_of.values()
    return declared if is_id and "bos_token" not in folder.tokenizer_config else None


def _fill_in_middle(token_id_of: dict[str, int]) -> FillInMiddle | None:
    for marks in _FILL_IN_MIDDLE:
        if all(mark in token_id_of for mark in marks):
            return FillInMiddle(*(token_id_of[mark] for mark in marks))
    return None


class _Decoder:
    """Converts the text of a token in tokenizer.json to the bytes it stands for."""

    def __init__(self, tokenizer: dict[str, Any]) -> None:
        stages = list(_stages(tokenizer.get("decoder")))
        kinds = {stage.get("type") for stage in stages}
        self._byte_of = _byte_table() if "ByteLevel" in kinds else {}
        self._has_fallback = "ByteFallback" in kinds
        self._replaced: list[tuple[str, str]] = []
        for stage in stages:
            if stage.get("type") == "Metaspace":
                self._replaced.append((str(stage.get("replacement", "▁")), " "))
            pattern = stage.get("pattern")
            if stage.get("type") == "Replace" and isinstance(pattern, dict):
                self._replaced.append((str(pattern.get("String")), str(stage.get("content"))))

    def __call__(self, text: str, *, is_added: bool) -> bytes:
        if self._byte_of and not is_added and all(char in self._byte_of for char in text):
            return bytes(self._byte_of[char] for char in text)
        if self._has_fallback and (match := _FALLBACK_BYTE.match(text)):
            return bytes([int(match[1], 16)])
        for old, new in self._replaced:
            text = text.replace(old, new)
        return text.encode("utf-8", "replace")


def _stages(decoder: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return
    if decoder.get("type") == "Sequence":
        for stage in decoder.get("decoders") or []:
            yield from _stages(stage)
    else:
        yield decoder


def _byte_table() -> dict[str, int]:
    """GPT-2's table: printable characters stand for themselves, the other bytes for the
    characters from U+0100 on. Source: openai/gpt-2@master:src/encoder.py, bytes_to_unicode."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}
