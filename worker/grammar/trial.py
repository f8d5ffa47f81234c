"""The replica's side of `worker.engines.grammar_check`. Task threads only, one at a time."""

import contextlib
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import msgspec
from llguidance import LLTokenizer

from shared.errors import EngineError
from worker.engines.grammar_check import Outline, Verdict

_ROOT = Path(__file__).parent.parent.parent
_START_S = 60.0
_TRIAL_S = 10.0
"""More than the CPU time it has: a busy machine is not what the grammar is to blame for."""
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Its memory is limited by addresses: none for what it does not use."""
_TOO_LARGE = Verdict(
    is_valid=False,
    reason="it takes too much memory or time. Make it smaller: shorter repetitions, fewer "
    "references and alternatives",
)


class GrammarTrial:
    """Starts the process with the first grammar, and another one where it has died."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self._outline = msgspec.json.encode(_outline(tokenizer))
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = lambda: None

    def verdict(self, source: str) -> Verdict:
        """Compile and follow what `LLMatcher.grammar_from_…` returned. Raises EngineError."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        answer = _ask(process, msgspec.json.encode(source), _TRIAL_S)
        if not answer:
            self._end()
            return _TOO_LARGE
        return msgspec.json.decode(answer, type=Verdict)

    def _start(self) -> subprocess.Popen[bytes]:
        self._end()
        process = self._process = subprocess.Popen(  # nosec B603 # fixed words, no shell
            [sys.executable, "-m", "worker.engines.grammar_check"],
            cwd=_ROOT,
            env=os.environ | _ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._end = weakref.finalize(self, _end, process)
        if not _ask(process, self._outline, _START_S):
            self._end()
            raise EngineError("The process that checks grammars does not start.")
        return process


def _ask(process: subprocess.Popen[bytes], line: bytes, limit_s: float) -> bytes:
    """Write a line, read one; b"" if the process has died of it, or had to be killed."""
    assert process.stdin is not None and process.stdout is not None, "both are pipes"
    timer = threading.Timer(limit_s, process.kill)
    timer.start()
    try:
        process.stdin.write(line + b"\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        return b""
    finally:
        timer.cancel()
    return answer if answer.endswith(b"\n") else b""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None, "both are pipes"
        with contextlib.suppress(BrokenPipeError):  # of what it was to read next
            pipe.close()


def _outline(tokenizer: LLTokenizer) -> Outline:
    size = tokenizer.vocab_size
    specials = {
        token: tokenizer.decode_bytes([token]).decode("utf-8", "replace")
        for token in range(size)
        if tokenizer.is_special_token(token)
    }
    return Outline(size, specials, list(tokenizer.eos_tokens))
