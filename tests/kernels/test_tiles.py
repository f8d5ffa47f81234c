"""How the work is cut: every tile serves every page, and every SM gets something to do."""

import pytest
import torch

from worker.engines.exllamav2.attention.attach import new_attention
from worker.engines.exllamav2.attention.call import PAGE_MULTIPLE, PackedCall, PagedCall
from worker.engines.exllamav2.attention.tiles import (
    MAX_SPLITS,
    Tile,
    choose_splits,
    choose_tile,
    pad_head_dim,
)
from worker.engines.exllamav2.warm_up import warm_up, warm_up_lengths

_H100_SMS = 132


@pytest.mark.parametrize("head_dim", [16, 32, 64, 72, 128, 256])
@pytest.mark.parametrize("num_rows", [1, 16, 17, 64, 65, 128, 4096])
@pytest.mark.parametrize("shared_kib", [228, 164, 100])
def test_a_tile_divides_the_pages_and_fits_the_tensor_cores(
    num_rows: int, head_dim: int, shared_kib: int
) -> None:
    tile = choose_tile(num_rows, pad_head_dim(head_dim), shared_kib * 1024)
    assert PAGE_MULTIPLE % tile.keys == 0
    assert tile.rows >= 16 and tile.keys >= 16
    assert tile.rows >= min(num_rows, 16)


def test_padding_goes_to_the_next_power_of_two() -> None:
    padded = {8: 16, 16: 16, 64: 64, 72: 128, 128: 128, 136: 256, 256: 256}
    assert {size: pad_head_dim(size) for size in padded} == padded


@pytest.mark.parametrize(
    ("num_programs", "max_keys"), [(8, 16_384), (64, 4096), (256, 4096), (512, 4096)]
)
def test_splits_keep_the_gpu_busy(num_programs: int, max_keys: int) -> None:
    slots = 3 * _H100_SMS
    programs = num_programs * choose_splits(num_programs, 1, max_keys, slots)
    assert programs / (-(-programs // slots) * slots) >= 0.9


@pytest.mark.parametrize("batch", [2, 8, 32, 64])
def test_one_long_sequence_among_short_ones_is_cut_into_pieces(batch: int) -> None:
    """By the GPU's use alone 32 sequences × 8 KV heads get three parts at any length."""
    splits = choose_splits(8 * batch, batch, 32_768, 3 * _H100_SMS)
    assert 32_768 / splits <= 2300


def test_equal_short_sequences_are_not_cut_for_their_length() -> None:
    by_use = choose_splits(256, 1, 2048, 3 * _H100_SMS)
    assert choose_splits(256, 32, 2048, 3 * _H100_SMS) == by_use


def test_partial_results_stay_within_tens_of_megabytes() -> None:
    """16 rows of 128 float32 values a program; a table of 128k tokens."""
    slots = 3 * _H100_SMS
    for batch in (1, 2, 16, 64, 256, 1024):
        for kv_heads in (1, 2, 8, 32):
            programs = batch * kv_heads
            splits = choose_splits(programs, batch, 131_072, slots)
            assert splits == 1 or programs * splits * 16 * 128 * 4 <= 65_000_000


def test_splits_have_bounds() -> None:
    for num_programs in (1, 7, 132, 100_000):
        for max_keys in (256, 1024, 131_072):
            splits = choose_splits(num_programs, 1, max_keys, _H100_SMS)
            assert 1 <= splits <= min(MAX_SPLITS, max_keys // 128)
    assert choose_splits(100_000, 10, 131_072, _H100_SMS) == 1


@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 8, 16, 32, 71])
def test_the_warm_up_meets_every_tile(group: int) -> None:
    def tiles(lengths: list[int]) -> set[Tile]:
        return {choose_tile(q_len * group, 128) for q_len in lengths}

    assert tiles(warm_up_lengths(group)) == tiles(list(range(1, 300)))


def test_the_warm_up_runs(device: torch.device) -> None:
    calls: list[PagedCall] = []

    class Counting:
        name = "counting"

        def paged(self, call: PagedCall) -> torch.Tensor:
            calls.append(call)
            return new_attention("triton").paged(call)

        def packed(self, call: PackedCall) -> torch.Tensor:
            raise AssertionError("a model's steps are paged")

    assert warm_up(Counting(), 8, 1, 64, (-1, 5), device=device) == len(calls) == 2 * 2 * 2
