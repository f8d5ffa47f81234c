"""The attention benchmark as far as a host without a GPU can take it."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import attention
from worker.engines.exllamav2.attention import attach, kernels
from worker.engines.exllamav2.attention.call import PagedCall
from worker.engines.exllamav2.attention.triton import TritonAttention

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a host without a GPU")
def test_without_a_gpu_it_says_so_and_ends() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "bench.attention"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1 and not result.stdout
    assert "needs a CUDA GPU" in result.stderr


def test_without_arguments_two_head_sizes_are_measured() -> None:
    given = attention.parser().parse_args([])
    assert (given.heads, given.kv_heads, given.head_dim) == (32, 8, [128, 64])


def test_bytes_are_those_of_all_keys_and_values() -> None:
    shape = attention.Shape(32, 8, 128)
    assert attention.kv_bytes(shape, [4096] * 32) == 32 * 4096 * 8 * 128 * 2 * 2
    assert attention.kv_bytes(shape, [1, 2]) == 3 * 8 * 128 * 2 * 2


def test_the_table_shows_every_case() -> None:
    case = {
        "attention": "triton", "batch": "32 × 4,096", "head_dim": 128, "time_us": 200.0,
        "bytes_per_s": 2.7e12, "of_copy": 0.9, "attend_of_copy": 0.93,
    }  # fmt: skip
    facts = {"device": "H100", "copy_bytes_per_s": 3e12, "host_us_per_call": 65.0}
    text = attention.text_table({**facts, "cases": [case]})
    assert "H100: copy 3,000 GB/s" in text and "the host 65 µs" in text
    assert "32 × 4,096" in text and "2,700" in text and "90%" in text and "93%" in text


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[PagedCall]:
    """Steps run on the CPU, are timed as one second each, and leave their calls here."""
    found: list[PagedCall] = []

    class Recording:
        def paged(self, call: PagedCall) -> torch.Tensor:
            found.append(call)
            return TritonAttention().paged(call)

    def time_s(steps: Sequence[Callable[[], object]]) -> float:
        for step in steps:
            step()
        return 1.0

    randn, tensor = torch.randn, torch.tensor
    monkeypatch.setattr(attach, "new_attention", lambda name: Recording())
    monkeypatch.setattr(torch, "randn", lambda dims, dtype, device: randn(dims).to(dtype))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch, "tensor", lambda values, dtype, device: tensor(values, dtype=dtype))
    monkeypatch.setattr(attention, "time_s", time_s)
    monkeypatch.setattr(attention, "_ROTATED_BYTES", 1)
    return found


_SHAPE = attention.Shape(4, 2, 64)
_LENS = (600, 1, 256)


@pytest.mark.skipif(torch.cuda.is_available(), reason="puts CPU tensors where the GPU's would be")
def test_every_step_has_keys_of_its_own_and_ends_at_the_same_length(calls: list[PagedCall]) -> None:
    for alone in (False, True):
        attention.decode_time_s("triton", _SHAPE, _LENS, attend_alone=alone)
    with_append, without = calls[: len(calls) // 2], calls[len(calls) // 2 :]
    assert len({call.k_cache.data_ptr() for call in with_append}) == len(with_append) == 4
    for call in calls:
        assert (call.cache_lens + call.num_appended).tolist() == list(_LENS)
        long, short, middle = call.block_table.tolist()
        assert sorted([*long, *short[:1], *middle[:1]]) == list(range(5))
    assert all(call.k_new is None for call in without)


@pytest.mark.skipif(torch.cuda.is_available(), reason="puts CPU tensors where the GPU's would be")
def test_attend_alone_leaves_the_other_kernels_out(
    calls: list[PagedCall], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[str] = []
    for name in ("append_to_pages", "combine_splits", "attend"):
        monkeypatch.setattr(kernels, name, _Spy(name, getattr(kernels, name), launched))
    attention.decode_time_s("triton", _SHAPE, _LENS, attend_alone=True)
    assert set(launched) == {"attend"}
    launched.clear()
    attention.decode_time_s("triton", _SHAPE, _LENS, attend_alone=False)
    assert set(launched) == {"append_to_pages", "combine_splits", "attend"}


def test_what_there_is_is_kept_after_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_facts", dict)
    monkeypatch.setattr(attention, "copy_bandwidth", lambda: 1e12)
    monkeypatch.setattr(attention, "host_time_s", lambda shape: 5e-5)
    monkeypatch.setattr(attention, "decode_time_s", lambda *a, attend_alone: 1e-4)
    content: dict[str, Any] = {}
    lengths: list[int] = []
    shapes = [attention.Shape(head_dim=dim) for dim in (128, 64)]
    attention.run(shapes, content, lambda: lengths.append(len(content["cases"])))
    assert lengths == list(range(2 * 2 * len(attention.BATCHES) + 1))


class _Spy:
    """A kernel that tells when it is launched."""

    def __init__(self, name: str, kernel: Any, launched: list[str]) -> None:
        self._name, self._kernel, self._launched = name, kernel, launched

    def __getitem__(self, grid: object) -> Any:
        self._launched.append(self._name)
        return self._kernel[grid]
