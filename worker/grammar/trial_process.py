"""A process that compiles grammars on trial: `python -m worker.engines.grammar_check`.

What llguidance does with a hostile grammar ends the process, or takes it minutes and gigabytes:
then it is this one, and no replica. It reads an `Outline` and then sources, one in a line of
JSON, and answers each with a `Verdict`. It ends when nobody writes to it any more.
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

from worker.engines.constraint import CompiledGrammar, Constraint, first_lines, new_matcher
from worker.engines.large_stack import on_large_stack

_STACK_BYTES = 64 << 20
"""Half of what the replica compiles with: what passes here does not overflow there."""
_SMALL_STACK_BYTES = 4 << 20
"""For following the grammar: half of what the engine loop has."""
_MEMORY_BYTES = 96 << 20
"""What a grammar may take; a schema of 500 properties takes 3 MiB."""
_CPU_S = 2


class Outline(Struct, frozen=True):
    """As much of a vocabulary as a grammar can name."""

    size: int
    special_tokens: dict[int, str]
    end_ids: list[int]

    def new_tokenizer(self) -> LLTokenizer:
        """Its texts are single bytes, which spell everything."""
        return LLTokenizer(TokenizerWrapper(_Bytes(self)), eos_token=self.end_ids)


class Verdict(Struct, frozen=True):
    is_valid: bool = True
    is_followed: bool = True
    reason: str = ""
    """Why it is not."""
    num_bytes: int = 0
    """Memory that the compiled grammar takes."""


class _Bytes:
    """What TokenizerWrapper asks for."""

    bos_token_id = None

    def __init__(self, outline: Outline) -> None:
        specials = outline.special_tokens
        size = max(outline.size, len(specials) + 256)
        free = (token for token in range(size) if token not in specials)
        self._tokens_of_bytes = [next(free) for _ in range(256)]
        self.eos_token_id = outline.end_ids[0]
        self.special_token_ids = list(specials)
        self.tokens = [b""] * size
        for token, text in specials.items():
            self.tokens[token] = text.encode()
        for byte, token in enumerate(self._tokens_of_bytes):
            self.tokens[token] = bytes([byte])

    def __call__(self, text: bytes) -> list[int]:
        return [self._tokens_of_bytes[byte] for byte in text]


def _main(requests: BinaryIO, answers: BinaryIO) -> None:
    tokenizer = msgspec.json.decode(requests.readline(), type=Outline).new_tokenizer()
    answers.write(b"ready\n")
    answers.flush()
    _limit(resource.RLIMIT_AS, _pages(0) + _STACK_BYTES + _MEMORY_BYTES)
    for line in requests:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, 1 + int(usage.ru_utime + usage.ru_stime) + _CPU_S)
        verdict = _verdict(tokenizer, msgspec.json.decode(line, type=str))
        answers.write(msgspec.json.encode(verdict) + b"\n")
        answers.flush()


def _verdict(tokenizer: LLTokenizer, source: str) -> Verdict:
    ctypes.CDLL(None).malloc_trim(0)  # else memory that is free here hides what is taken
    before_bytes = _pages(1)
    matcher = on_large_stack(_STACK_BYTES, lambda: new_matcher(tokenizer, source))
    if matcher.is_error():
        return Verdict(is_valid=False, reason=first_lines(matcher.get_error()))
    error = Constraint(CompiledGrammar(matcher, tokenizer.vocab_size, "")).probe()
    if error is not None:
        return Verdict(is_followed=False, reason=error.message)
    return Verdict(num_bytes=max(0, _pages(1) - before_bytes))


def _limit(which: int, value: int) -> None:
    resource.setrlimit(which, (value, resource.getrlimit(which)[1]))


def _pages(column: int) -> int:
    """Bytes of this process: 0 = its address space, 1 = resident."""
    return int(Path("/proc/self/statm").read_text().split()[column]) * resource.getpagesize()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its end is the replica's
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_STACK, _SMALL_STACK_BYTES)
    _main(sys.stdin.buffer, sys.stdout.buffer)
