"""What bench.gpu keeps when its time is up, as far as a host without a GPU can show it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from bench import gpu
from bench.measure import Numbers

ROOT = Path(__file__).parent.parent.parent
_STOPPED = """
import os, signal, sys, time
from bench import gpu, gpu_served
from tests.kernels.test_bench_gpu import numbers

def against_bare(model, loads, rounds, found, say):
    found[loads[0].label]["bare"] = [numbers(100.0)]
    try:
        say("one side")
        signal.pause()
    finally:
        print("the server is stopped", flush=True)

gpu.machine_facts = gpu.gpu_machine.device_facts = dict
gpu_served.against_bare = against_bare
gpu.report.write = lambda *_: sys.exit("not when it was stopped")
sys.exit(gpu.main())
"""


def numbers(tokens_per_s: float) -> Numbers:
    fields = dict.fromkeys(Numbers.__struct_fields__, 1.0)
    return Numbers(**{**fields, "tokens_per_s": tokens_per_s, "cpu_by_role": {}})


def test_ratios_are_those_of_loads_that_both_sides_have_run() -> None:
    found = {
        "1 streams": {"bare": [numbers(100.0)], "llmis": [numbers(98.0)]},
        "8 streams": {"bare": [numbers(400.0)]},
        "32 streams": {},
    }
    result = gpu.served_result(found)
    assert result["served_over_bare"] == {"1 streams": 0.98}
    assert result["meets_target"] is False
    del found["8 streams"], found["32 streams"]
    assert gpu.served_result(found)["meets_target"] is True


def test_nothing_measured_meets_no_target() -> None:
    assert gpu.served_result({"1 streams": {}})["meets_target"] is False


def test_a_stop_keeps_every_load_and_ends_in_order(tmp_path: Path) -> None:
    """As `timeout` stops it: the whole group is signalled, this process twice."""
    partial = tmp_path / "out" / "bench.json"
    command = [sys.executable, "-c", _STOPPED, "served", "--kinds", "1b", "--partial", str(partial)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "one side\n":
            break
    kept = json.loads(partial.read_text())["served"]["1b"]
    assert kept["rounds"]["1 streams"]["bare"][0]["tokens_per_s"] == 100.0
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert said == "the server is stopped\n"
    assert json.loads(partial.read_text())["served"]["1b"] == kept
