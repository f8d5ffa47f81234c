"""What only a GPU can show: long sequences, no wait for the device, capture, other streams.

Triton's interpreter has no tensor cores, no pipeline and no memory model.
"""

import math
from dataclasses import replace

import pytest
import torch

from tests.kernels.reference import PAGE_SIZE, TOLERANCE, Case, error, make
from worker.engines.exllamav2.attention.attach import new_attention
from worker.engines.exllamav2.attention.call import Attention, check_paged
from worker.engines.exllamav2.warm_up import warm_up

_BATCH = Case((3000, 17, 4100, 0), 1, 8, 2, 128)


@pytest.fixture(params=["triton", "sdpa"])
def attention(request: pytest.FixtureRequest) -> Attention:
    return new_attention(request.param)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("group", [1, 4, 8])
@pytest.mark.parametrize("q_len", [1, 4, 16, 700])
def test_long_sequences(
    attention: Attention, q_len: int, group: int, head_dim: int, device: torch.device
) -> None:
    made = make(Case((3000, 17, 4100), q_len, 2 * group, 2, head_dim), device)
    out = attention.paged(check_paged(made.call))
    assert error(out, made.expected) < TOLERANCE
    assert torch.equal(made.call.k_cache.cpu().view(torch.int16), made.k_after.view(torch.int16))


@pytest.mark.parametrize(
    "case",
    [
        Case((5000,), 600, 8, 2, 128, window_left=1024),
        Case((5000, 90), 1, 8, 4, 256, window_left=512, softcap=50.0),
        Case((2000,), 300, 8, 4, 256, softcap=50.0),
        Case((40_000,), 1, 8, 8, 64, num_splits=64),
        Case((4000,), 40, 14, 2, 128, num_splits=5),
    ],
    ids=["window", "gemma", "softcap", "long", "splits"],
)
def test_options_at_length(attention: Attention, case: Case, device: torch.device) -> None:
    made = make(case, device)
    assert error(attention.paged(check_paged(made.call)), made.expected) < TOLERANCE


def test_a_cache_of_more_than_two_to_the_31_elements(device: torch.device) -> None:
    """Where 32 bits would not do: keys and values at the end of an 8.7 GB cache."""
    num_pages, kv_heads, head_dim, length = 8300, 8, 128, 700
    shape = (num_pages, PAGE_SIZE, kv_heads, head_dim)
    needed = 2 * 2 * math.prod(shape)
    if torch.cuda.mem_get_info()[0] < needed + (1 << 30):
        pytest.skip(f"needs {needed >> 30} GiB of free GPU memory")
    assert (num_pages - 4) * math.prod(shape[1:]) > 2**31
    made = make(Case((length, length), 1, 4 * kv_heads, kv_heads, head_dim), device)
    # The pages of the small cache lie at the end of the large one; all before them is NaN.
    num_small = made.call.k_cache.shape[0]
    caches = []
    for small in (made.call.k_cache, made.call.v_cache):
        large = torch.empty(shape, dtype=torch.float16, device=device)
        large[-num_small:] = small
        caches.append(large)
    table = made.call.block_table + (num_pages - num_small)
    call = replace(made.call, k_cache=caches[0], v_cache=caches[1], block_table=table)
    out = new_attention("triton").paged(check_paged(call))
    assert error(out, made.expected) < TOLERANCE
    for large, after in zip(caches, (made.k_after, made.v_after), strict=True):
        written = large[-num_small:].cpu().view(torch.int16)
        assert torch.equal(written, after.view(torch.int16))
        assert bool(large[: num_pages - num_small].isnan().all())


def test_a_step_never_waits_for_the_device(attention: Attention, device: torch.device) -> None:
    made = make(_BATCH, device)
    attention.paged(check_paged(made.call))
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = attention.paged(check_paged(made.call))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert error(out, made.expected) < TOLERANCE


def test_a_captured_step_follows_the_lengths(device: torch.device) -> None:
    """What is replayed reads the new lengths, tables and keys, with the splits of the old."""
    attention = new_attention("triton")
    made = make(_BATCH, device)
    # As many pages, at other places.
    other = make(replace(_BATCH, lens=(2900, 200, 4300, 5)), device, seed=1)
    assert other.call.k_cache.shape == made.call.k_cache.shape
    attention.paged(check_paged(made.call))
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        out = attention.paged(check_paged(made.call))
    for name in ("q", "k_new", "v_new", "k_cache", "v_cache", "cache_lens", "block_table"):
        getattr(made.call, name).copy_(getattr(other.call, name))
    graph.replay()
    assert error(out, other.expected) < TOLERANCE


def test_the_current_stream_is_the_one_that_is_used(
    attention: Attention, device: torch.device
) -> None:
    """ExLlamaV2 computes on a stream of its own: what is queued there must come first."""
    made = make(_BATCH, device)
    q = made.call.q.clone()
    attention.paged(check_paged(made.call))
    made.call.q.fill_(float("nan"))
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        made.call.q.copy_(q)
        out = attention.paged(check_paged(made.call))
        torch.cuda.current_stream().synchronize()
    assert error(out, made.expected) < TOLERANCE


def test_the_same_call_gives_the_same_bits(device: torch.device) -> None:
    attention = new_attention("triton")
    made = make(_BATCH, device)
    first = attention.paged(check_paged(made.call))
    assert all(torch.equal(attention.paged(check_paged(made.call)), first) for _ in range(20))


def test_after_the_warm_up_nothing_is_compiled(device: torch.device) -> None:
    from triton import knobs

    heads, kv_heads, head_dim = 6, 3, 64
    attention = new_attention("triton")
    warm_up(attention, heads, kv_heads, head_dim, device=device)
    compiled: list[object] = []
    before = knobs.runtime.jit_post_compile_hook
    knobs.runtime.jit_post_compile_hook = lambda **facts: compiled.append(facts)
    try:
        for q_len in (1, 2, 8, 9, 33, 256, 300):
            for lens in ((0,), (256, 1, 40)):
                made = make(Case(lens, q_len, heads, kv_heads, head_dim), device)
                attention.paged(check_paged(made.call))
    finally:
        knobs.runtime.jit_post_compile_hook = before
    assert not compiled
