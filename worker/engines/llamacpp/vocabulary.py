"""A GGUF model's vocabulary: text to token ids and back."""

import ctypes as c

from llguidance import LLTokenizer

from shared.errors import EngineError, InvalidRequest, SettingsError
from worker.engines.llamacpp.bindings import Library
from worker.vocabulary import FillInMiddle

_CONTROL = 1 << 3
"""LLAMA_TOKEN_ATTR_CONTROL."""
_NOT_TEXT = b"\xff"
"""llguidance's prefix of a token that text cannot spell."""


class GgufVocabulary:
    """See `worker.vocabulary.Vocabulary` for the contract."""

    def __init__(self, library: Library, model: int) -> None:
        """Raises SettingsError."""
        self._lib = library
        self._vocab: int = library.model_get_vocab(model)
        self.size: int = library.vocab_n_tokens(self._vocab)
        self.bos_text = self._text(library.vocab_bos(self._vocab))
        self.eos_text = self._text(library.vocab_eos(self._vocab))
        self.adds_bos: bool = library.vocab_get_add_bos(self._vocab)
        self._check_added("bos", self.adds_bos)
        self._check_added("eos", library.vocab_get_add_eos(self._vocab))
        texts = [library.vocab_get_text(self._vocab, token) or b"" for token in range(self.size)]
        # A text is never shorter than the bytes that its token adds.
        self.max_token_bytes = max(map(len, texts))
        self.control_tokens = {
            text.decode("utf-8", "replace"): token
            for token, text in enumerate(texts)
            if text and library.vocab_get_attr(self._vocab, token) & _CONTROL
        }
        # In llama.cpp every token that ends a text or a turn is a control token.
        self.end_tokens = frozenset(
            token
            for token in self.control_tokens.values()
            if library.vocab_is_eog(self._vocab, token)
        )
        marks = [
            getattr(library, f"vocab_fim_{name}")(self._vocab) for name in ("pre", "suf", "mid")
        ]
        self.fill_in_middle = FillInMiddle(*marks) if min(marks) >= 0 else None
        self._pieces: dict[int, bytes] = {}

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        encoded = text.encode("utf-8", "replace")
        tokens = self._tokens(encoded, len(encoded) + 8, add_special, parse_special)
        if isinstance(tokens, int):
            # Its negative is the number of tokens: a character may be several of three bytes each.
            tokens = self._tokens(encoded, -tokens, add_special, parse_special)
        if isinstance(tokens, int):
            raise EngineError(f"llama.cpp could not tokenize {len(encoded)} bytes ({tokens})")
        if min(tokens, default=0) < 0:
            raise InvalidRequest("The vocabulary of the model has no token for a part of the text.")
        return tokens

    def _tokens(
        self, encoded: bytes, room: int, add_special: bool, parse_special: bool
    ) -> list[int] | int:
        """Up to `room` tokens; what llama.cpp returned if there are more."""
        tokens = (c.c_int32 * room)()
        n: int = self._lib.tokenize(
            self._vocab, encoded, len(encoded), tokens, room, add_special, parse_special
        )
        return tokens[:n] if n >= 0 else n

    def piece(self, token: int) -> bytes:
        if not 0 <= token < self.size:
            return b""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._piece(token, with_names=False)
        return piece

    def name(self, token: int) -> bytes:
        return self._piece(token, with_names=True)

    def _piece(self, token: int, *, with_names: bool) -> bytes:
        buffer = c.create_string_buffer(self.max_token_bytes + 1)
        n = self._lib.token_to_piece(self._vocab, token, buffer, len(buffer), 0, with_names)
        return buffer.raw[: max(n, 0)]

    def new_grammar_tokenizer(self) -> LLTokenizer:
        """Make the same vocabulary for llguidance; takes a second with a large one."""
        pieces = [self.name(token) for token in range(self.size)]
        for token in self.control_tokens.values():
            pieces[token] = _NOT_TEXT + pieces[token]
        made: LLTokenizer = LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
            tokens=pieces,
            vocab_ptr=self._vocab,
            tokenize_fptr=c.cast(self._lib.tokenize, c.c_void_p).value,  # type: ignore[arg-type]
            eos_token=sorted(self.end_tokens),
        )
        return made

    def _check_added(self, name: str, is_added: bool) -> None:
        """llama.cpp aborts the process when it is to add a token that the vocabulary lacks."""
        if is_added and not 0 <= getattr(self._lib, f"vocab_{name}")(self._vocab) < self.size:
            raise SettingsError(
                f"models: the file says add_{name}_token, and its vocabulary has no "
                f"{name.upper()} token. Convert it again with {name}_token_id, or without that."
            )

    def _text(self, token: int) -> str:
        if token < 0:
            return ""
        text: bytes | None = self._lib.vocab_get_text(self._vocab, token)
        return (text or b"").decode("utf-8", "replace")
