"""Checks the llama.cpp that is installed with the demo model: the layouts of its structs, a prompt
that is long enough for the widest instructions, and an answer. A wrong instruction kills it."""

import sys
import tempfile
from pathlib import Path

from shared.settings.model_settings import DEMO_MODEL
from shared.wire.job import Sampling
from worker.agent.model_files import packaged
from worker.engines.base import EngineSettings
from worker.engines.registry import load
from worker.sequence import Sequence

_PROMPT = "Paris is the capital of France. " * 10 + "Paris is the capital of"
_ANSWER = " France"
_CONTEXT = 256


def main() -> int:
    assert DEMO_MODEL.package is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / DEMO_MODEL.path
        packaged.assemble(path, DEMO_MODEL.package)
        engine = load("llamacpp", EngineSettings(path, _CONTEXT, slots=1, threads=1))
        prompt = engine.vocabulary.tokenize(_PROMPT, add_special=True, parse_special=False)
        engine.submit(Sequence(("check", 0), prompt, 4, sampling=Sampling(temperature=0.0)))
        text = ""
        while engine.has_work:
            text += "".join(result.text for result in engine.step())
        engine.close()
    if text.startswith(_ANSWER):
        return 0
    print(f"llmis: the model says {text!r} in place of {_ANSWER!r}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
