"""The trial process for grammars: `python -m worker.grammar.trial_process`.

A hostile grammar can crash llguidance or cost it minutes and gigabytes, so grammars are compiled
here first, under limits, and not in a replica. Reads a `TrialVocabulary`, then sources, one
JSON string per line, and answers each with a `TrialResult`. Ends when its standard input is closed.
"""

import ctypes
import resource
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec
from llguidance import LLTokenizer, TokenizerWrapper
from msgspec import Struct

from worker.grammar.constraint import CompiledGrammar, Constraint, first_lines, new_matcher
from worker.grammar.large_stack import on_large_stack

_STACK_BYTES = 64 << 20
"""Half of the replica's: a grammar that passes here does not overflow the stack there."""
_SMALL_STACK_BYTES = 4 << 20
"""For following the grammar: half of the engine loop's."""
_MEMORY_BYTES = 96 << 20
"""Limit for one grammar; a schema of 500 properties takes 3 MiB."""
_CPU_S = 2


class TrialVocabulary(Struct, frozen=True):
    """The part of a vocabulary that a grammar can refer to."""

    size: int
    special_tokens: dict[int, str]
    end_ids: list[int]

    def new_tokenizer(self) -> LLTokenizer:
        """Make one whose other tokens are single bytes, which can spell every text."""
        return LLTokenizer(TokenizerWrapper(_Bytes(self)), eos_token=self.end_ids)


class TrialResult(Struct, frozen=True):
    """What a replica needs to know before it compiles the grammar itself."""

    is_valid: bool = True
    is_followed: bool = True
    reason: str = ""
    """Why it is invalid, or cannot be followed."""
    num_bytes: int = 0
    """Memory that the compiled grammar takes."""


class _Bytes:
    """The interface that TokenizerWrapper expects."""

    bos_token_id = None

    def __init__(self, vocabulary: TrialVocabulary) -> None:
        specials = vocabulary.special_tokens
        size = max(vocabulary.size, len(specials) + 256)
        free = (token for token in range(size) if token not in specials)
        self._tokens_of_bytes = [next(free) for _ in range(256)]
        self.eos_token_id = vocabulary.end_ids[0]
        self.special_token_ids = list(specials)
        self.tokens = [b""] * size
        for token, text in specials.items():
            self.tokens[token] = text.encode()
        for byte, token in enumerate(self._tokens_of_bytes):
            self.tokens[token] = bytes([byte])

    def __call__(self, text: bytes) -> list[int]:
        return [self._tokens_of_bytes[byte] for byte in text]


def _main(requests: BinaryIO, answers: BinaryIO) -> None:
    tokenizer = msgspec.json.decode(requests.readline(), type=TrialVocabulary).new_tokenizer()
    answers.write(b"ready\n")
    answers.flush()
    _limit(resource.RLIMIT_AS, _pages(0) + _STACK_BYTES + _MEMORY_BYTES)
    for line in requests:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, 1 + int(usage.ru_utime + usage.ru_stime) + _CPU_S)
        result = _run(tokenizer, msgspec.json.decode(line, type=str))
        answers.write(msgspec.json.encode(result) + b"\n")
        answers.flush()


def _run(tokenizer: LLTokenizer, source: str) -> TrialResult:
    ctypes.CDLL(None).malloc_trim(0)  # memory kept free here would hide what the grammar takes
    before_bytes = _pages(1)
    matcher = on_large_stack(_STACK_BYTES, lambda: new_matcher(tokenizer, source))
    if matcher.is_error():
        return TrialResult(is_valid=False, reason=first_lines(matcher.get_error()))
    error = Constraint(CompiledGrammar(matcher, tokenizer.vocab_size, "")).probe()
    if error is not None:
        return TrialResult(is_followed=False, reason=error.message)
    return TrialResult(num_bytes=max(0, _pages(1) - before_bytes))


def _limit(which: int, value: int) -> None:
    resource.setrlimit(which, (value, resource.getrlimit(which)[1]))


def _pages(column: int) -> int:
    """Bytes of this process: column 0 = address space, 1 = resident."""
    return int(Path("/proc/self/statm").read_text().split()[column]) * resource.getpagesize()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the replica ends it
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_STACK, _SMALL_STACK_BYTES)
    _main(sys.stdin.buffer, sys.stdout.buffer)
