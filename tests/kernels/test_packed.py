"""Attention without a cache: ExLlamaV2's dummy forward at load time, and its vision towers."""

import itertools

import pytest
import torch

from tests.kernels.reference import TOLERANCE, attend, error
from worker.engines.exllamav2.attention.attach import new_attention
from worker.engines.exllamav2.attention.flash_api import FlashApi


@pytest.fixture(params=["triton", "sdpa"])
def api(request: pytest.FixtureRequest) -> FlashApi:
    return FlashApi(new_attention(request.param))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).half()


@pytest.mark.parametrize(
    ("batch", "q_len", "num_keys", "heads", "kv_heads", "head_dim"),
    [
        (1, 100, 100, 4, 1, 64),
        (1, 70, 70, 2, 2, 128),
        (1, 40, 40, 2, 1, 256),
        (2, 1, 150, 2, 1, 64),
        (2, 3, 40, 6, 2, 64),
        (1, 40, 40, 2, 2, 72),
    ],
)
@pytest.mark.parametrize("causal", [True, False])
def test_dense(
    api: FlashApi,
    batch: int,
    q_len: int,
    num_keys: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    causal: bool,
    device: torch.device,
) -> None:
    q = random(batch, q_len, heads, head_dim)
    k, v = random(2, batch, num_keys, kv_heads, head_dim)
    out = api.flash_attn_func(q.to(device), k.to(device), v.to(device), causal=causal)
    expected = [attend(q[b], k[b], v[b], head_dim**-0.5, causal) for b in range(batch)]
    assert out.shape == q.shape
    assert error(out, torch.stack(expected)) < TOLERANCE


def test_slices_of_a_cache_for_several_sequences(api: FlashApi, device: torch.device) -> None:
    cache = torch.full((2, 60, 1, 64), float("nan")).half()
    cache[:, :50] = random(2, 50, 1, 64)
    q = random(2, 4, 2, 64)
    keys = cache.to(device)[:, :50]
    out = api.flash_attn_func(
        q.to(device), keys, keys, causal=True, window_size=(9, 9), softcap=5.0, softmax_scale=0.5
    )
    expected = [attend(q[b], *[cache[b, :50]] * 2, 0.5, True, 9, 5.0) for b in range(2)]
    assert error(out, torch.stack(expected)) < TOLERANCE


def test_more_queries_than_keys_leaves_the_first_ones_zero(
    api: FlashApi, device: torch.device
) -> None:
    q, k = random(1, 5, 1, 64), random(1, 2, 1, 64)
    out = api.flash_attn_func(q.to(device), k.to(device), k.to(device), causal=True)
    assert torch.equal(out[0, :3].cpu(), torch.zeros(3, 1, 64).half())
    assert error(out[0], attend(q[0], k[0], k[0], 0.125)) < TOLERANCE


@pytest.mark.parametrize("causal", [True, False])
def test_sequences_one_behind_another(api: FlashApi, causal: bool, device: torch.device) -> None:
    """One is as long as a tile, one needs more blocks than the others, one has nothing."""
    lens = [3, 128, 0, 37]
    starts = [0, *itertools.accumulate(lens)]
    q, k, v = random(3, sum(lens), 2, 64)
    index = torch.tensor(starts, dtype=torch.int32, device=device)
    out = api.flash_attn_varlen_func(
        q.to(device), k.to(device), v.to(device), index, index, max(lens), max(lens), causal=causal
    )
    parts = [slice(a, b) for a, b in itertools.pairwise(starts)]
    expected = torch.cat([attend(q[p], k[p], v[p], 0.125, causal) for p in parts])
    assert error(out, expected) < TOLERANCE


def test_queries_and_keys_of_different_lengths(api: FlashApi, device: torch.device) -> None:
    q_lens, kv_lens = [1, 4], [30, 9]
    q, kv = random(5, 4, 64), random(39, 2, 64)
    q_starts = torch.tensor([0, 1, 5], dtype=torch.int32, device=device)
    kv_starts = torch.tensor([0, 30, 39], dtype=torch.int32, device=device)
    keys = kv.to(device)
    out = api.flash_attn_varlen_func(
        q.to(device), keys, keys, q_starts, kv_starts, max(q_lens), max(kv_lens), causal=True
    )
    expected = [attend(q[:1], kv[:30], kv[:30], 0.125), attend(q[1:], kv[30:], kv[30:], 0.125)]
    assert error(out, torch.cat(expected)) < TOLERANCE
