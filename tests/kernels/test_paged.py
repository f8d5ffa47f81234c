"""Attention over pages, ours and torch's, against float64 with everything else NaN."""

import pytest
import torch

from tests.kernels.reference import TOLERANCE, Case, error, make
from worker.engines.exllamav2.attention import triton
from worker.engines.exllamav2.attention.attach import new_attention
from worker.engines.exllamav2.attention.call import Attention, check_paged


@pytest.fixture(params=["triton", "sdpa"])
def attention(request: pytest.FixtureRequest) -> Attention:
    return new_attention(request.param)


def check(attention: Attention, case: Case, device: torch.device) -> None:
    made = make(case, device)
    out = attention.paged(check_paged(made.call))
    assert out.shape == made.call.q.shape and out.dtype == torch.float16
    assert out.is_contiguous()
    assert error(out, made.expected) < TOLERANCE
    for pages, after in ((made.call.k_cache, made.k_after), (made.call.v_cache, made.v_after)):
        assert torch.equal(pages.cpu().view(torch.int16), after.view(torch.int16))


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_decode_shares_keys_within_each_group(
    attention: Attention, group: int, head_dim: int, device: torch.device
) -> None:
    check(attention, Case((70, 261), 1, 2 * group, 2, head_dim), device)


@pytest.mark.parametrize("q_len", range(1, 17))
def test_every_length_of_a_draft(attention: Attention, q_len: int, device: torch.device) -> None:
    check(attention, Case((250,), q_len, heads=4, kv_heads=1), device)


@pytest.mark.parametrize("length", [0, 1, 127, 128, 129, 255, 256, 257, 511, 512, 513, 700])
def test_lengths_around_tiles_and_pages(
    attention: Attention, length: int, device: torch.device
) -> None:
    check(attention, Case((length,)), device)


def test_a_batch_of_different_lengths(attention: Attention, device: torch.device) -> None:
    check(attention, Case((0, 600, 1, 255, 256), heads=4, kv_heads=2), device)


@pytest.mark.parametrize("num_splits", [1, 2, 3, 9, 64])
def test_splits_add_up_to_the_whole(
    attention: Attention, num_splits: int, device: torch.device
) -> None:
    """More splits than tiles leave some without a key."""
    check(attention, Case((500, 3), 2, head_dim=128, num_splits=num_splits), device)


def test_splits_of_one_long_sequence_leave_the_short_ones_whole(
    attention: Attention, device: torch.device
) -> None:
    """Most splits of the short ones have no key: they write nothing but that."""
    check(attention, Case((700, 0, 3, 65), heads=4, kv_heads=2, num_splits=16), device)


def test_a_new_key_outside_of_the_table_is_written_nowhere(device: torch.device) -> None:
    """A fault of the caller must not reach another sequence's page."""
    made = make(Case((200, 10)), device)
    made.call.cache_lens.copy_(torch.tensor([256, -1], dtype=torch.int32))
    before = made.call.k_cache.clone()
    new_attention("triton").paged(check_paged(made.call))
    assert torch.equal(made.call.k_cache.view(torch.int16), before.view(torch.int16))


def test_columns_that_no_sequence_needs_are_not_read(
    attention: Attention, device: torch.device
) -> None:
    check(attention, Case((256, 10), extra_pages=3, num_splits=4), device)


@pytest.mark.parametrize("q_len", [1, 5])
@pytest.mark.parametrize("window_left", [0, 1, 100, 256, 4096])
def test_a_window_hides_what_is_far_back(
    attention: Attention, window_left: int, q_len: int, device: torch.device
) -> None:
    check(attention, Case((40, 530), q_len, window_left=window_left), device)


@pytest.mark.parametrize(("softcap", "scale"), [(50.0, 0.0), (2.0, 1.0), (0.0, 0.3)])
def test_soft_cap_and_scale(
    attention: Attention, softcap: float, scale: float, device: torch.device
) -> None:
    check(attention, Case((300,), 3, softcap=softcap, scale=scale, num_splits=2), device)


def test_scores_far_beyond_the_cap(attention: Attention, device: torch.device) -> None:
    """tanh at ±1, where its exponential overflows."""
    check(attention, Case((90,), 1, softcap=1.0, scale=100.0), device)


def test_keys_that_the_caller_wrote_itself(attention: Attention, device: torch.device) -> None:
    """One sequence whose pages lie in a row: ExLlamaV2 writes there and gives no k and v."""
    check(attention, Case((300,), 4, appends=False), device)


def test_no_key_at_all_gives_zero(attention: Attention, device: torch.device) -> None:
    made = make(Case((0, 5), appends=False, num_splits=2), device)
    out = attention.paged(check_paged(made.call))
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    assert error(out, made.expected) < TOLERANCE


@pytest.mark.parametrize(
    ("length", "q_len", "heads", "kv_heads", "head_dim"),
    [
        (0, 130, 2, 1, 64),
        (256, 100, 2, 1, 64),
        (300, 70, 2, 1, 128),
        (70, 140, 1, 1, 256),
        (200, 130, 7, 7, 64),
        (100, 40, 5, 1, 64),
    ],
)
def test_a_chunk_of_a_prefill(
    attention: Attention,
    length: int,
    q_len: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    device: torch.device,
) -> None:
    check(attention, Case((length,), q_len, heads, kv_heads, head_dim, num_splits=1), device)


@pytest.mark.parametrize(
    "case",
    [
        Case((300,), 70, window_left=50),
        Case((130,), 70, softcap=20.0),
        Case((300,), 70, num_splits=3),
        Case((400,), 70, appends=False),
        Case((0, 290), 66),
    ],
    ids=["window", "softcap", "splits", "written", "batch"],
)
def test_a_prefill_with(attention: Attention, case: Case, device: torch.device) -> None:
    check(attention, case, device)


@pytest.mark.parametrize("head_dim", [16, 80, 96, 120])
def test_head_sizes_between_powers_of_two(
    attention: Attention, head_dim: int, device: torch.device
) -> None:
    check(attention, Case((200,), 2, head_dim=head_dim, num_splits=2), device)


@pytest.mark.parametrize("shared_kib", [164, 100])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("q_len", [1, 70])
def test_the_tiles_of_smaller_gpus(
    q_len: int,
    head_dim: int,
    shared_kib: int,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = triton._Device(4, shared_kib * 1024)
    monkeypatch.setattr(triton, "_properties", lambda _: facts)
    check(new_attention("triton"), Case((150,), q_len, 2, 1, head_dim), device)
