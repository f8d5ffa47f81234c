"""Bandwidth of decode attention on a GPU: our kernels and torch's, against a plain copy.

python -m bench.attention            prints a table, row by row
python -m bench.attention --json F   and keeps what it has found so far in F

A decode step reads every key and value once and computes next to nothing, so bytes of KV over
time says how near it comes to what the memory gives. Needs a CUDA GPU; nothing else runs here.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec

from bench.report import table

_PAGE_SIZE = 256
_COPY_BYTES = 1 << 30
_ROTATED_BYTES = 512 << 20
"""Several times the L2 cache of any GPU, so that no step finds its keys there."""
_MIN_SETS = 4
_REPLAYS = 4
_REPEATS = 15
_HOST_CALLS = 1000
_NAMES = ("triton", "sdpa")
_GPU_IS_MISSING = "bench.attention: needs a CUDA GPU, and torch sees none on this machine"


@dataclass(frozen=True, slots=True)
class Shape:
    """Heads of a model; those of Llama 3 8B unless told otherwise."""

    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences that take a step together, by the keys of each."""

    label: str
    lens: tuple[int, ...]


BATCHES = (
    *(
        Batch(f"{num} × {context:,}", (context,) * num)
        for num in (1, 8, 32)
        for context in (1024, 4096, 16_384)
    ),
    Batch("1 × 32,768 + 31 × 512", (32_768, *[512] * 31)),
)


def main() -> int:
    arguments = parser().parse_args()
    if not _has_gpu():
        print(_GPU_IS_MISSING, file=sys.stderr)
        return 1
    content: dict[str, Any] = {}

    def save() -> None:
        if arguments.json:
            encoded = msgspec.json.encode(content)
            arguments.json.write_bytes(msgspec.json.format(encoded))

    shapes = [Shape(arguments.heads, arguments.kv_heads, dim) for dim in arguments.head_dim]
    run(shapes, content, save)
    print(text_table(content))
    return 0


def run(shapes: Sequence[Shape], content: dict[str, Any], save: Callable[[], None]) -> None:
    """Fill `content`: device, copy bandwidth, one entry a shape, batch and attention.

    Times in microseconds, bandwidths in bytes a second; `of_copy` is the step's share of the
    copy's, `attend_of_copy` that of the kernel that reads the keys, without append and combine.
    `save` is called after every entry: what there is when the time is up counts.
    """
    content |= {**_facts(), "copy_bytes_per_s": copy_bandwidth(), "cases": []}
    content["host_us_per_call"] = round(1e6 * host_time_s(shapes[0]), 1)
    save()
    for shape in shapes:
        for batch in BATCHES:
            for name in _NAMES:
                case = _case(name, shape, batch, content["copy_bytes_per_s"])
                content["cases"].append(case)
                save()
                print("  ".join(_row(case)), flush=True)


def kv_bytes(shape: Shape, lens: Sequence[int]) -> int:
    """Of all keys and values in fp16: what the step has to read at least."""
    return 2 * 2 * sum(lens) * shape.kv_heads * shape.head_dim


def copy_bandwidth() -> float:
    """Bytes read and written a second by torch's copy of 1 GiB of random bytes."""
    import torch

    # Zeros may be copied faster than other bytes.
    source = torch.randint(0, 256, (_COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / time_s([lambda: target.copy_(source)])


def host_time_s(shape: Shape) -> float:
    """What one call costs the host, checks and launches included, with the GPU waiting for it."""
    import torch

    step = _step("triton", shape, (_PAGE_SIZE,))
    for _ in range(20):
        step()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(_HOST_CALLS):
        step()
    took_s = time.perf_counter() - started
    torch.cuda.synchronize()
    return took_s / _HOST_CALLS


def decode_time_s(name: str, shape: Shape, lens: Sequence[int], *, attend_alone: bool) -> float:
    """One step of one layer; `attend_alone` leaves out Triton's append and combine."""
    from worker.engines.exllamav2.attention import kernels

    num_sets = max(_MIN_SETS, -(-_ROTATED_BYTES // kv_bytes(shape, lens)))
    steps = [_step(name, shape, lens, appends=not attend_alone) for _ in range(num_sets)]
    if not attend_alone:
        return time_s(steps)
    with patch.object(kernels, "combine_splits", _NoLaunch()):
        return time_s(steps)


def time_s(steps: Sequence[Callable[[], object]]) -> float:
    """Median time of a step, from a graph of all of them: no launch, and no warm cache.

    At short contexts Python takes longer to ask for the work than the GPU to do it; that is
    for the end-to-end benchmark to tell.
    """
    import torch

    stream = torch.cuda.Stream()
    # What the steps read was made on the stream that was current.
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for step in steps[:3]:
            step()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for step in steps:
                step()
        times_ms = []
        for _ in range(_REPEATS + 2):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(_REPLAYS):
                graph.replay()
            end.record()
            stream.synchronize()
            times_ms.append(begin.elapsed_time(end))
    # The first two may load code and raise clocks.
    median_ms = sorted(times_ms[2:])[_REPEATS // 2]
    return float(median_ms) / 1000 / _REPLAYS / len(steps)


def text_table(content: dict[str, Any]) -> str:
    copy = content["copy_bytes_per_s"]
    header = ["batch × context", "attention", "head", "µs", "GB/s", "of copy", "attend alone"]
    rows = [header, *(_row(case) for case in content["cases"])]
    return (
        f"{content['device']}: copy {copy / 1e9:,.0f} GB/s; "
        f"a call costs the host {content['host_us_per_call']:g} µs\n\n{table(rows)}"
    )


class _NoLaunch:
    """Stands where a kernel stood, and launches nothing."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *arguments, **options: None


def _case(name: str, shape: Shape, batch: Batch, copy_bytes_per_s: float) -> dict[str, Any]:
    num_bytes = kv_bytes(shape, batch.lens)
    step_s = decode_time_s(name, shape, batch.lens, attend_alone=False)
    case = {
        "attention": name,
        "batch": batch.label,
        **asdict(shape),
        "time_us": round(step_s * 1e6, 2),
        "bytes_per_s": num_bytes / step_s,
        "of_copy": round(num_bytes / step_s / copy_bytes_per_s, 4),
    }
    if name == "triton":
        attend_s = decode_time_s(name, shape, batch.lens, attend_alone=True)
        case["attend_us"] = round(attend_s * 1e6, 2)
        case["attend_of_copy"] = round(num_bytes / attend_s / copy_bytes_per_s, 4)
    return case


def _step(
    name: str, shape: Shape, lens: Sequence[int], *, appends: bool = True
) -> Callable[[], object]:
    """A decode step over random keys of its own, which fill the pages to `lens` in the end."""
    import torch

    from worker.engines.exllamav2.attention.attach import new_attention
    from worker.engines.exllamav2.attention.call import PagedCall, check_paged

    num_sequences = len(lens)
    pages_of = [-(-length // _PAGE_SIZE) for length in lens]

    def random(*dims: int) -> torch.Tensor:
        return torch.randn(dims, dtype=torch.float16, device="cuda")

    # Pages in no order, as after hours of serving.
    order = torch.randperm(sum(pages_of)).to(torch.int32)
    block_table = torch.zeros((num_sequences, max(pages_of)), dtype=torch.int32)
    for row, pages in zip(block_table, order.split(pages_of), strict=True):
        row[: len(pages)] = pages
    new = (num_sequences, 1, shape.kv_heads, shape.head_dim)
    cache = (sum(pages_of), _PAGE_SIZE, shape.kv_heads, shape.head_dim)
    num_before = [length - 1 if appends else length for length in lens]
    call = PagedCall(
        q=random(num_sequences, 1, shape.heads, shape.head_dim),
        k_cache=random(*cache),
        v_cache=random(*cache),
        cache_lens=torch.tensor(num_before, dtype=torch.int32, device="cuda"),
        block_table=block_table.cuda(),
        softmax_scale=shape.head_dim**-0.5,
        k_new=random(*new) if appends else None,
        v_new=random(*new) if appends else None,
    )
    attention = new_attention(name)
    return lambda: attention.paged(check_paged(call))


def _row(case: dict[str, Any]) -> list[str]:
    alone = f"{case['attend_of_copy']:.0%}" if "attend_of_copy" in case else "-"
    return [
        case["batch"],
        case["attention"],
        str(case["head_dim"]),
        f"{case['time_us']:,.1f}",
        f"{case['bytes_per_s'] / 1e9:,.0f}",
        f"{case['of_copy']:.0%}",
        alone,
    ]


def _facts() -> dict[str, Any]:
    import torch
    import triton

    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }


def _has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m bench.attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # Of an instance: with slots the class has descriptors where the defaults were.
    usual = Shape()
    made.add_argument("--heads", type=int, default=usual.heads)
    made.add_argument("--kv-heads", type=int, default=usual.kv_heads)
    made.add_argument("--head-dim", type=int, nargs="+", default=[usual.head_dim, 64])
    made.add_argument("--json", type=Path, help="a file for the result")
    return made


if __name__ == "__main__":
    sys.exit(main())
