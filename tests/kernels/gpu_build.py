"""Compiles the kernels for real GPUs and prints what they take, one JSON object a line.

python -m tests.kernels.gpu_build

No GPU is needed: Triton's wheel has its own assembler. A process of its own, because the
interpreter, once on, compiles nothing.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from worker.engines.exllamav2.attention import kernels
from worker.engines.exllamav2.attention.tiles import (
    COMBINE_WARPS,
    MAX_SPLITS,
    choose_tile,
    pad_head_dim,
)

_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
_TYPES = {
    **dict.fromkeys(("q", "k", "v", "out", "k_new", "v_new"), "*fp16"),
    **dict.fromkeys(("partials", "logsums"), "*fp32"),
    **dict.fromkeys(("block_table", "cache_lens", "q_starts", "kv_starts"), "*i32"),
    **dict.fromkeys(("score_scale", "cap_log2"), "fp32"),
}
"""Everything else is an i32."""
_HOPPER, _A100, _CONSUMER = 90, 80, 86
SHARED_BYTES_OF_SM = {_HOPPER: 228 * 1024, _A100: 164 * 1024, _CONSUMER: 100 * 1024}
_PREFIX = {_HOPPER: "", _A100: "middle-", _CONSUMER: "small-"}


def main() -> None:
    for arch, prefix in _PREFIX.items():
        for head_dim in (64, 128, 256):
            for rows in (4, 1024):
                name = f"{prefix}paged-{head_dim}-{rows}"
                _attend(name, rows, head_dim, is_split=rows < 1024, arch=arch)
    for head_dim in (64, 128, 256):
        _attend(f"packed-{head_dim}", 1024, head_dim, has_pages=False)
        _attend(f"split-{head_dim}", 1024, head_dim, is_split=True)
    # Seven query heads share a KV head in Qwen2; divisions by seven take registers.
    for rows in (7, 1024):
        _attend(f"seven-{rows}", rows, 128, is_split=True, group=7, kv_heads=4)
    _attend("split-96", 1024, 96, is_split=True)
    _attend("paged-192", 1024, 192)
    _attend("split-192", 1024, 192, is_split=True)
    _attend("window-softcap-256", 1024, 256, has_window=True, has_softcap=True)
    _attend("window-softcap-128", 4, 128, has_window=True, has_softcap=True)
    _attend("softcap-128", 1024, 128, has_softcap=True)
    _attend("vision-72", 1024, 72, has_pages=False, is_causal=False)
    for arch in (_A100, _CONSUMER):
        _attend(f"{_PREFIX[arch]}packed-256", 1024, 256, has_pages=False, arch=arch)
    combine = {"HEAD_DIM": 128, "BLOCK_D": 128, "MAX_SPLITS": MAX_SPLITS}
    _build("combine", kernels.combine_splits, combine, {"num_warps": COMBINE_WARPS})
    append = {"KV_STRIDE": 1024, "BLOCK": 1024, "PAGE_SIZE": 256}
    _build("append", kernels.append_to_pages, append, {})


def _attend(
    name: str,
    rows: int,
    head_dim: int,
    has_pages: bool = True,
    is_causal: bool = True,
    has_window: bool = False,
    has_softcap: bool = False,
    is_split: bool = False,
    group: int = 4,
    kv_heads: int = 8,
    arch: int = _HOPPER,
) -> None:
    tile = choose_tile(rows, pad_head_dim(head_dim), SHARED_BYTES_OF_SM[arch])
    absent = ("q_starts", "kv_starts") if has_pages else ("block_table", "cache_lens")
    absent += () if is_split else ("partials", "logsums")
    constants = {
        "KV_HEADS": kv_heads, "GROUP": group, "HEAD_DIM": head_dim,
        "BLOCK_D": pad_head_dim(head_dim), "BLOCK_M": tile.rows, "BLOCK_N": tile.keys,
        "PAGE_SIZE": 256 if has_pages else 1,
        "HAS_PAGES": has_pages, "IS_CAUSAL": is_causal, "HAS_WINDOW": has_window,
        "HAS_SOFTCAP": has_softcap, "IS_SPLIT": is_split, **dict.fromkeys(absent),
    }  # fmt: skip
    stages = tile.num_stages if has_pages else tile.packed_stages
    options = {"num_warps": tile.num_warps, "num_stages": stages}
    _build(name, kernels.attend, constants, options, arch, programs_per_sm=tile.programs_per_sm)


def _build(
    name: str,
    kernel: Any,
    constants: dict[str, Any],
    options: dict[str, int],
    arch: int = _HOPPER,
    **facts: int,
) -> None:
    names = [parameter.name for parameter in kernel.params]
    signature = {n: "constexpr" if n in constants else _TYPES.get(n, "i32") for n in names}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(i,): constants[n] for i, n in enumerate(names) if n in constants},
        # As at run time: torch's memory begins at multiples of 16.
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, n in enumerate(names)
            if signature[n].startswith("*")
        },
    )
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    facts |= {
        "arch": arch,
        "threads": 32 * options.get("num_warps", 4),
        "shared": built.metadata.shared,
    }
    print(json.dumps({"name": name, **facts, **_resources(built), **_instructions(built)}))


def _resources(built: CompiledKernel) -> dict[str, int]:
    """Registers of a thread, and the bytes of stack that they spill to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [_CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return {"registers": int(found[1]), "stack": int(found[2])}


def _instructions(built: CompiledKernel) -> dict[str, int]:
    ptx = built.asm["ptx"]
    return {
        "wide_copies": len(re.findall(r"cp\.async\.cg\.shared\.global .*0x10", ptx)),
        "tensor_core": len(re.findall(r"wgmma\.mma_async|mma\.sync", ptx)),
        "wgmma": len(re.findall(r"wgmma\.mma_async", ptx)),
    }


if __name__ == "__main__":
    main()
