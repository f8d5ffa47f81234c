"""How the attention kernel divides its work: tile shapes by head size, and number of splits.

Pure arithmetic on the host, from shapes only: data on the device is never read, so a step never
waits for the GPU, and equal shapes give equal launches.
"""

from dataclasses import dataclass
from functools import lru_cache

MAX_SPLITS = 64
"""Most partial results of a query row; `kernels.combine_splits` holds that many weights."""
COMBINE_WARPS = 1
"""For `kernels.combine_splits`, whose programs sum vectors of HEAD_DIM values."""
MAX_HEAD_DIM = 256
_MIN_SPLIT_KEYS = 128
"""A shorter split costs more to combine than it saves."""
_LONG_SPLIT_KEYS = 2048
"""In a batch, sequences are split to about this length even if the GPU is busy: otherwise few
programs would read a long one, long after the short ones are done. The empty splits of short
sequences cost next to nothing."""
_MAX_WAVES = 4
"""Bounds the scratch memory for partial results and the cost of reading them back."""
_MAX_WAVES_FOR_LENGTH = 20
"""Bounds the scratch memory of splits by length, mostly empty for short sequences:
20 waves × 396 programs × 16 rows × 128 × 4 bytes = 65 MB on an H100."""
_GOOD_USE = 0.9
"""Share of busy slots in the waves; at this share no more splits are tried."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows × keys of one iteration of the kernel's loop, and Triton's compile options for it."""

    rows: int
    """Query rows of a program: tokens × query heads that share a KV head. At least 16, the
    minimum of `tl.dot`."""
    keys: int
    """Keys per iteration. Divides every page size, so that no iteration crosses a page."""
    num_warps: int
    num_stages: int
    """For keys in pages. The page number is an extra load in Triton's pipeline, before those of
    keys and values: five stages keep two iterations of these in flight, three stages one."""
    programs_per_sm: int
    """Programs that fit on an SM at once, by the sizes that Triton 3.6 reports."""

    @property
    def packed_stages(self) -> int:
        """Without pages fewer stages keep as many iterations in flight."""
        return (self.num_stages + 1) // 2


FEW_ROWS = 16
"""Most rows for the small tiles; more rows use those of `_MANY_ROWS`."""
_MANY_ROWS = 128

# By rows and padded head size. Decoding is bound by memory: 16 KiB of keys and of values per
# iteration. Prefill is bound by compute: 128 rows keep the tensor cores busy, with as many keys as
# fit without spilling registers.
_LARGE = {
    (16, 64): Tile(16, 128, 4, 5, programs_per_sm=3),
    (16, 128): Tile(16, 64, 4, 5, programs_per_sm=3),
    (16, 256): Tile(16, 32, 4, 5, programs_per_sm=3),
    (128, 64): Tile(128, 64, 8, 5, programs_per_sm=2),
    (128, 128): Tile(128, 64, 8, 5, programs_per_sm=1),
    (128, 256): Tile(128, 32, 8, 5, programs_per_sm=1),
}
"""H100, H200 and similar: 228 KiB of shared memory, 227 of them for one program."""
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
"""All others, down to the 99 KiB of consumer cards."""
LARGE_SM_BYTES, MIDDLE_SM_BYTES = 228 * 1024, 160 * 1024
"""Least shared memory of an SM for each table."""


def choose_tile(
    num_rows: int, padded_head_dim: int, shared_bytes_of_sm: int = LARGE_SM_BYTES
) -> Tile:
    """The tile for `num_rows` query rows of one sequence and KV head. Few shapes on purpose: each
    is a kernel of its own, compiled at its first use. With 17 to 64 rows, as in speculation, most
    of the large tile is wasted work; by estimate it would wait for keys in that time anyway."""
    if shared_bytes_of_sm >= LARGE_SM_BYTES:
        table = _LARGE
    elif shared_bytes_of_sm >= MIDDLE_SM_BYTES:
        table = _MIDDLE
    else:
        table = _SMALL
    rows = FEW_ROWS if num_rows <= FEW_ROWS else _MANY_ROWS
    return table[rows, max(64, padded_head_dim)]


def pad_head_dim(head_dim: int) -> int:
    """The next power of two, which a tile's width must be; from 16 to 256."""
    return max(16, 1 << (head_dim - 1).bit_length())


@lru_cache(maxsize=4096)
def choose_splits(num_programs: int, num_sequences: int, max_keys: int, num_slots: int) -> int:
    """Splits of each sequence's keys, 1…MAX_SPLITS: the fewest that use the GPU well.

    `num_programs`: programs of all sequences without splits; `num_slots`: programs that run at a
    time; `max_keys`: capacity of the block table. Each sequence is split by its own length, which
    only the device knows; in a batch only one may be long.
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
