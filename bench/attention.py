"""Bandwidth of decode attention on a GPU: our kernels and torch's, against a plain copy.

python -m bench.attention            prints a table
python -m bench.attention --json F   and writes what it found to F

A decode step reads every key and value once and computes next to nothing, so bytes of KV over
time says how near it comes to what the memory gives. Needs a CUDA GPU; nothing else runs here.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.report import table

_CONTEXTS = (1024, 4096, 16_384)
_BATCHES = (1, 8, 32)
_PAGE_SIZE = 256
_COPY_BYTES = 1 << 30
_NAMES = ("triton", "sdpa")
_GPU_IS_MISSING = "bench.attention: needs a CUDA GPU, and torch sees none on this machine"


@dataclass(frozen=True, slots=True)
class Shape:
    """Heads of a model; Llama 3 8B unless told otherwise."""

    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128


def main() -> int:
    arguments = _arguments()
    if not _has_gpu():
        print(_GPU_IS_MISSING, file=sys.stderr)
        return 1
    content = run(Shape(arguments.heads, arguments.kv_heads, arguments.head_dim))
    print(_table(content))
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(content)))
    return 0


def run(shape: Shape = Shape()) -> dict[str, Any]:
    """Device, copy bandwidth, and one entry for each batch, context and attention.

    Times in microseconds, bandwidths in bytes a second; `of_copy` is the share of the copy's.
    """
    copy = copy_bandwidth()
    cases = []
    for batch in _BATCHES:
        for context in _CONTEXTS:
            for name in _NAMES:
                time_s = decode_time(name, shape, batch, context)
                num_bytes = kv_bytes(shape, batch, context)
                cases.append(
                    {
                        "attention": name,
                        "batch": batch,
                        "context": context,
                        "time_us": round(time_s * 1e6, 2),
                        "bytes_per_s": num_bytes / time_s,
                        "of_copy": round(num_bytes / time_s / copy, 4),
                    }
                )
    return {
        **_facts(),
        "shape": {f: getattr(shape, f) for f in ("heads", "kv_heads", "head_dim")},
        "copy_bytes_per_s": copy,
        "cases": cases,
    }


def kv_bytes(shape: Shape, batch: int, context: int) -> int:
    """Of all keys and values in fp16: what the step has to read at least."""
    return 2 * 2 * batch * context * shape.kv_heads * shape.head_dim


def copy_bandwidth() -> float:
    """Bytes read and written a second by torch's copy of 1 GiB on the device."""
    import torch

    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / _time_s(lambda: target.copy_(source))


def decode_time(name: str, shape: Shape, batch: int, context: int) -> float:
    """Seconds of one step of one layer for `batch` sequences, append included."""
    import torch

    from worker.engines.exl2.attach import new_attention
    from worker.engines.exl2.calls import PagedCall, check_paged

    pages_each = -(-context // _PAGE_SIZE)
    num_pages = batch * pages_each

    def random(*dims: int) -> torch.Tensor:
        return torch.randn(dims, dtype=torch.float16, device="cuda")

    # Pages in no order, as after hours of serving.
    order = torch.randperm(num_pages, device="cuda").to(torch.int32)
    call = PagedCall(
        q=random(batch, 1, shape.heads, shape.head_dim),
        k_cache=random(num_pages, _PAGE_SIZE, shape.kv_heads, shape.head_dim),
        v_cache=random(num_pages, _PAGE_SIZE, shape.kv_heads, shape.head_dim),
        cache_lens=torch.full((batch,), context - 1, dtype=torch.int32, device="cuda"),
        block_table=order.view(batch, pages_each),
        softmax_scale=shape.head_dim**-0.5,
        k_new=random(batch, 1, shape.kv_heads, shape.head_dim),
        v_new=random(batch, 1, shape.kv_heads, shape.head_dim),
    )
    attention = new_attention(name)
    return _time_s(lambda: attention.paged(check_paged(call)))


def _time_s(step: Any) -> float:
    """Median by CUDA events, with a cold L2 cache before each run.

    The launches are captured in a graph first: at short contexts Python takes longer to ask
    for the work than the GPU to do it, which is for the end-to-end benchmark to tell.
    """
    import torch
    from triton.testing import do_bench

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step()
        median_ms = do_bench(graph.replay, warmup=25, rep=200, return_mode="median")
    return float(median_ms) / 1000


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


def _table(content: dict[str, Any]) -> str:
    copy = content["copy_bytes_per_s"]
    rows = [["batch × context", "attention", "µs", "GB/s", "of copy"]]
    for case in content["cases"]:
        rows.append(
            [
                f"{case['batch']} × {case['context']:,}",
                case["attention"],
                f"{case['time_us']:,.1f}",
                f"{case['bytes_per_s'] / 1e9:,.0f}",
                f"{case['of_copy']:.0%}",
            ]
        )
    return f"{content['device']}: copy {copy / 1e9:,.0f} GB/s\n\n{table(rows)}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--heads", type=int, default=Shape.heads)
    parser.add_argument("--kv-heads", type=int, default=Shape.kv_heads)
    parser.add_argument("--head-dim", type=int, default=Shape.head_dim)
    parser.add_argument("--json", type=Path, help="a file for the result")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
