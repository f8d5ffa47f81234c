"""Asks a GPU what only a GPU can answer; writes one JSON line per answer.

    python -m tools.gpu.questions ANSWERS.jsonl [NAME ...]
    python -m tools.gpu.questions --ask NAME        one question, in this process

Needs .venv-gpu's python and the models of tests/gpu/models.py, which are written when missing.
LLMIS_SKIP_QUESTIONS names those to leave out, separated by spaces.
"""

import json
import os
import sys
from pathlib import Path

from tools.gpu.questions import costs, device, failures, memory, weights
from tools.gpu.questions.asking import Question, answer_here, ask_apart

# In the order in which the answers matter: a stage that is cut has asked the first.
QUESTIONS = (
    Question(device.machine),
    Question(device.import_time),
    Question(weights.logits_with_triton),
    Question(weights.gptq_zeros),
    Question(memory.memory_of_a_process),
    Question(costs.cpu_share_of_a_step),
    Question(costs.load_time),
    Question(memory.unload),
    Question(costs.logits_copy),
    Question(weights.determinism),
    Question(device.paged_without_flash_attn),
    Question(weights.logits_with_sdpa),
    Question(weights.exl2_conversion, limit_s=150.0),
    Question(weights.sdpa_bug),
    Question(device.arch_names),
    # Expected to hang, so it costs all of its limit.
    Question(failures.truncated_file, limit_s=15.0),
)


def main(arguments: list[str]) -> int:
    by_name = {question.name: question for question in QUESTIONS}
    if arguments[:1] == ["--ask"]:
        answer_here(by_name[arguments[1]])
        return 0
    out = Path(arguments[0])
    skipped = os.environ.get("LLMIS_SKIP_QUESTIONS", "").split()
    for name in arguments[1:] or [name for name in by_name if name not in skipped]:
        command = [sys.executable, "-m", "tools.gpu.questions", "--ask", name]
        line = json.dumps(ask_apart(by_name[name], command))
        with out.open("a") as file:
            file.write(line + "\n")
        print(line[:400], flush=True)
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
