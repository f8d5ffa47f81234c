"""Client of the trial process `worker.grammar.trial_process`. Task threads, one at a time."""

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
from worker.grammar.trial_process import TrialResult, TrialVocabulary

_ROOT = Path(__file__).parent.parent.parent
_START_S = 60.0
_TRIAL_S = 10.0
"""Well above the CPU limit of the process: a busy machine is not the grammar's fault."""
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"}
"""The memory limit counts addresses: reserve none that are not used."""
_TOO_LARGE = TrialResult(
    is_valid=False,
    reason="it takes too much memory or time. Make it smaller: shorter repetitions, fewer "
    "references and alternatives",
)


class GrammarTrial:
    """Starts the process for the first grammar, and again after it has died."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self._vocabulary = msgspec.json.encode(_vocabulary_of(tokenizer))
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = lambda: None

    def run(self, source: str) -> TrialResult:
        """Compile and probe what `LLMatcher.grammar_from_…` returned. Raises EngineError."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        answer = _ask(process, msgspec.json.encode(source), _TRIAL_S)
        if not answer:
            self._end()
            return _TOO_LARGE
        return msgspec.json.decode(answer, type=TrialResult)

    def _start(self) -> subprocess.Popen[bytes]:
        self._end()
        process = self._process = subprocess.Popen(  # nosec B603 # fixed arguments, no shell
            [sys.executable, "-m", "worker.grammar.trial_process"],
            cwd=_ROOT,
            env=os.environ | _ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._end = weakref.finalize(self, _end, process)
        if not _ask(process, self._vocabulary, _START_S):
            self._end()
            raise EngineError("The trial process for grammars does not start.")
        return process


def _ask(process: subprocess.Popen[bytes], line: bytes, limit_s: float) -> bytes:
    """Write a line, read one; b"" if the process died or was killed at the time limit."""
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
        with contextlib.suppress(BrokenPipeError):  # unsent input that close() flushes
            pipe.close()


def _vocabulary_of(tokenizer: LLTokenizer) -> TrialVocabulary:
    size = tokenizer.vocab_size
    specials = {
        token: tokenizer.decode_bytes([token]).decode("utf-8", "replace")
        for token in range(size)
        if tokenizer.is_special_token(token)
    }
    return TrialVocabulary(size, specials, list(tokenizer.eos_tokens))
