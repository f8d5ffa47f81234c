"""How the attention kernel cuts its work: tile shapes by head size, and the number of splits.

Pure arithmetic on the host, from shapes alone: nothing here looks at the data on the device,
so a step never waits for the GPU and the same shapes always give the same launches.
"""

from dataclasses import dataclass
from functools import lru_cache

MAX_SPLITS = 64
"""Partial results a query row may have; `kernels.combine_splits` holds that many weights."""
COMBINE_WARPS = 1
"""Of `kernels.combine_splits`, a program of which sums vectors of HEAD_DIM values."""
MAX_HEAD_DIM = 256
_MIN_SPLIT_KEYS = 128
"""A shorter part costs more to put together than it saves."""
_LONG_SPLIT_KEYS = 2048
"""Sequences side by side are cut to about this, however busy they keep the GPU: a long one
among short ones would else be read by few programs, long after the others are done. The
splits that short ones do not fill cost next to nothing."""
_MAX_WAVES = 4
"""Bounds the scratch for partial results, and what reading them back costs."""
_MAX_WAVES_FOR_LENGTH = 20
"""Bounds the scratch of the cuts by length, of which the short sequences' share stays empty:
20 waves × 396 programs × 16 rows × 128 × 4 bytes = 65 MB on an H100."""
_GOOD_USE = 0.9
"""Share of the last wave's slots that is busy; splits stop growing there."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows × keys of one step of the kernel's loop, and how Triton is to compile it."""

    rows: int
    """Query rows of a program: tokens × query heads that share a KV head. At least 16, the
    least that `tl.dot` takes."""
    keys: int
    """Keys of a step. Divides every page size, so that no step crosses a page."""
    num_warps: int
    num_stages: int
    """For keys in pages. The page number is a load of its own in Triton's pipeline, before
    those of keys and values: five stages leave two steps of these in flight, three one."""
    programs_per_sm: int
    """That fit beside each other, by the sizes that Triton 3.6 reports."""

    @property
    def packed_stages(self) -> int:
        """Without pages as many steps are in flight with fewer stages."""
        return (self.num_stages + 1) // 2


FEW_ROWS = 16
"""Up to as many rows the small tiles are taken, from there on those of `_MANY_ROWS`."""
_MANY_ROWS = 128

# By rows and padded head size. Decoding waits for memory: 16 KiB of keys and as much of values
# a step. A prefill computes: 128 rows keep the tensor cores busy, the keys are what fits beside
# them without spilling registers.
_LARGE = {
    (16, 64): Tile(16, 128, 4, 5, programs_per_sm=3),
    (16, 128): Tile(16, 64, 4, 5, programs_per_sm=3),
    (16, 256): Tile(16, 32, 4, 5, programs_per_sm=3),
    (128, 64): Tile(128, 64, 8, 5, programs_per_sm=2),
    (128, 128): Tile(128, 64, 8, 5, programs_per_sm=1),
    (128, 256): Tile(128, 32, 8, 5, programs_per_sm=1),
}
"""H100, H200 and their like: 228 KiB of shared memory, 227 of them for one program."""
_MIDDLE = {
    (16, 64): Tile(16, 128, 4, 5, programs_per_sm=2),
    (16, 128): Tile(16, 64, 4, 5, programs_per_sm=2),
    (16, 256): Tile(16, 32, 4, 5, programs_per_sm=2),
    (128, 64): Tile(128, 64, 8, 5, programs_per_sm=1),
    (128, 128): Tile(128, 32, 8, 5, programs_per_sm=1),
    (128, 256): Tile(64, 32, 8, 5, programs_per_sm=1),
}
"""A100: 164 KiB of shared memory, 163 of them for one program."""
_SMALL = {
    (16, 64): Tile(16, 128, 4, 3, programs_per_sm=2),
    (16, 128): Tile(16, 64, 4, 3, programs_per_sm=2),
    (16, 256): Tile(16, 32, 4, 3, programs_per_sm=2),
    (128, 64): Tile(128, 64, 8, 3, programs_per_sm=1),
    (128, 128): Tile(128, 32, 8, 3, programs_per_sm=1),
    (128, 256): Tile(64, 32, 8, 3, programs_per_sm=1),
}
"""Everything else, down to the 99 KiB of consumers' cards."""
LARGE_SM_BYTES, MIDDLE_SM_BYTES = 228 * 1024, 160 * 1024
"""Shared memory of an SM from which on a table is taken."""


def choose_tile(
    num_rows: int, padded_head_dim: int, shared_bytes_of_sm: int = LARGE_SM_BYTES
) -> Tile:
    """The tile for `num_rows` query rows of one sequence and KV head.

    Few shapes on purpose: each is a kernel of its own, compiled when it is first met. Between
    17 and 64 rows, those of a draft, the rest of the large tile computes for nothing; by
    estimate it would wait for keys in that time.
    """
    if shared_bytes_of_sm >= LARGE_SM_BYTES:
        table = _LARGE
    elif shared_bytes_of_sm >= MIDDLE_SM_BYTES:
        table = _MIDDLE
    else:
        table = _SMALL
    rows = FEW_ROWS if num_rows <= FEW_ROWS else _MANY_ROWS
    return table[rows, max(64, padded_head_dim)]


def pad_head_dim(head_dim: int) -> int:
    """The next power of two, which is what a tile's width must be; from 16 to 256."""
    return max(16, 1 << (head_dim - 1).bit_length())


@lru_cache(maxsize=4096)
def choose_splits(num_programs: int, num_sequences: int, max_keys: int, num_slots: int) -> int:
    """Parts to cut each sequence's keys into, 1…MAX_SPLITS: the fewest that use the GPU well.

    `num_programs` are those of all sequences without splits, `num_slots` as many as run at a
    time, `max_keys` what the block table has room for. Each sequence is cut by its own length,
    which only the device knows; of several, the longest may be the only long one.
    """
    limit = min(max_keys // _MIN_SPLIT_KEYS, _MAX_WAVES * num_slots // num_programs, MAX_SPLITS)
    best, best_use = 1, 0.0
    for splits in range(1, limit + 1):
        waves = num_programs * splits / num_slots
        use = waves / -(-num_programs * splits // num_slots)
        if use > best_use:
            best, best_use = splits, use
        if use >= _GOOD_USE:
            break
    if num_sequences == 1:
        return best
    limit = min(_MAX_WAVES_FOR_LENGTH * num_slots // num_programs, MAX_SPLITS)
    return max(best, min(-(-max_keys // _LONG_SPLIT_KEYS), limit))
