"""The Triton kernels: attention over tiles of keys, its reduction, and the append to pages.

One attention kernel serves decode, prefill and packed sequences. The query heads that share a
KV head are rows of one matrix (row = token × group + head), so that keys and values are read once
for all of them: row r of a program is token r // GROUP, query head kv_head × GROUP + r % GROUP.

Layouts, all contiguous, fp16: q and out (tokens, kv_heads × GROUP, HEAD_DIM); pages
(num_pages, PAGE_SIZE, kv_heads, HEAD_DIM); packed keys (tokens, kv_heads, HEAD_DIM). Softmax
and accumulators are fp32, exponents base 2. Method: FlashAttention-2 (arXiv:2307.08691) and
Flash-Decoding (crfm.stanford.edu/2023/10/12/flashdecoding.html).

Integers that change between steps are not specialised: for a value of 1 or a multiple of 16
Triton would compile another kernel while serving.
"""

import triton
import triton.language as tl

COMBINE_CHUNK = tl.constexpr(8)
"""Partial results that `combine_splits` reads per iteration."""


@triton.jit
def _attend_range(
    acc, row_max, row_sum, q_tile, k, v, page_row, kv_start, begin, end, kv_len, q_positions,
    score_scale, cap_log2, window_left, offs_k, offs_v, mask_d,
    KV_STRIDE: tl.constexpr, BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr,
    HAS_PAGES: tl.constexpr, IS_CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, IS_PADDED: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """Add the keys begin…end - 1 to the running softmax; `begin` is a multiple of BLOCK_N. Without
    IS_MASKED every row sees every key of the range."""
    for n0 in range(begin, end, BLOCK_N):
        n0 = tl.multiple_of(n0, BLOCK_N)
        if HAS_PAGES:
            # BLOCK_N divides PAGE_SIZE, so the tile lies in one page. A cache can have more than
            # 2³¹ elements, hence 64 bits from here on.
            page = tl.load(page_row + n0 // PAGE_SIZE).to(tl.int64)
            base = (page * PAGE_SIZE + n0 % PAGE_SIZE) * KV_STRIDE
        else:
            base = (kv_start + n0) * KV_STRIDE
        keys = n0 + tl.arange(0, BLOCK_N)
        # Entries after the last key are never read: they may be NaN, and 0 × NaN is NaN.
        if IS_MASKED or IS_PADDED:
            is_key = keys < kv_len
            mask_k = is_key[None, :] & mask_d[:, None]
            mask_v = is_key[:, None] & mask_d[None, :]
            k_tile = tl.load(k + base + offs_k, mask=mask_k, other=0.0)
        else:
            k_tile = tl.load(k + base + offs_k)
        scores = tl.dot(q_tile, k_tile)
        if HAS_SOFTCAP:
            # tanh(x) = 1 - 2 / (e²ˣ + 1) is ±1 in fp32 well before e²ˣ = 2⁶⁰, and the exponential
            # does not overflow up to there.
            exp_2x = tl.exp2(tl.minimum(scores * (score_scale * 2.8853900817779268), 60.0))
            scores = cap_log2 * (1.0 - 2.0 / (exp_2x + 1.0))
        else:
            scores = scores * score_scale
        if IS_MASKED:
            is_seen = (keys < kv_len)[None, :]
            if IS_CAUSAL:
                is_seen = is_seen & (keys[None, :] <= q_positions[:, None])
            if HAS_WINDOW:
                is_seen = is_seen & (keys[None, :] >= q_positions[:, None] - window_left)
            scores = tl.where(is_seen, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        # A row that has seen no key yet has the maximum -inf, and -inf - -inf is NaN.
        safe_max = tl.where(new_max == float("-inf"), 0.0, new_max)
        correction = tl.exp2(row_max - safe_max)
        weights = tl.exp2(scores - safe_max[:, None])
        row_sum = row_sum * correction + tl.sum(weights, 1)
        row_max = new_max
        if IS_MASKED or IS_PADDED:
            v_tile = tl.load(v + base + offs_v, mask=mask_v, other=0.0)
        else:
            v_tile = tl.load(v + base + offs_v)
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc * correction[:, None])
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=["q_len", "num_appended", "table_width", "num_splits", "window_left"])
def attend(
    q, k, v, out, partials, logsums, block_table, cache_lens, q_starts, kv_starts,
    score_scale, cap_log2, window_left, q_len, num_appended, table_width, num_splits,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PAGE_SIZE: tl.constexpr, HAS_PAGES: tl.constexpr, IS_CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, IS_SPLIT: tl.constexpr,
):  # fmt: skip
    """Attention of one block of query rows over one split of one sequence's keys.

    Grid: (row blocks × KV_HEADS, splits, sequences). With pages, sequence b has q_len queries
    and cache_lens[b] + num_appended keys at block_table[b]; without, both are packed at
    q_starts and kv_starts (sequences + 1 each). The last query sees the last key.

    IS_SPLIT: each split writes its normalised result to partials (tokens, heads, splits,
    HEAD_DIM) fp32 and the base-2 logarithm of its softmax sum to logsums (tokens, heads,
    splits). A split without a key writes -inf and no partials. Otherwise the result goes to
    `out`.
    """
    # Neighbouring programs share tokens, and in a prefill the blocks with the most keys start
    # first.
    kv_head = tl.program_id(0) % KV_HEADS
    block = tl.num_programs(0) // KV_HEADS - 1 - tl.program_id(0) // KV_HEADS
    split = tl.program_id(1)
    sequence = tl.program_id(2)

    if HAS_PAGES:
        q_start = sequence.to(tl.int64) * q_len
        kv_start = 0
        kv_len = tl.load(cache_lens + sequence) + num_appended
        # A length beyond the table is an error of the caller, but must not read foreign memory.
        kv_len = tl.minimum(kv_len, table_width * PAGE_SIZE)
        page_row = block_table + sequence.to(tl.int64) * table_width
    else:
        q_start = tl.load(q_starts + sequence).to(tl.int64)
        q_len = (tl.load(q_starts + sequence + 1) - q_start).to(tl.int32)
        kv_start = tl.load(kv_starts + sequence).to(tl.int64)
        kv_len = (tl.load(kv_starts + sequence + 1) - kv_start).to(tl.int32)
        page_row = block_table

    first_row = block * BLOCK_M
    if not HAS_PAGES:  # noqa: SIM102, with pages a branch would only cost registers
        # A sequence shorter than the longest one has fewer blocks.
        if first_row >= q_len * GROUP:
            return
    rows = first_row + tl.arange(0, BLOCK_M)
    tokens = rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    is_row = rows < q_len * GROUP
    # Bottom-right alignment: token i has the position kv_len - q_len + i, below 0 if there are
    # more queries than keys (those see nothing, and their result is 0).
    q_positions = kv_len - q_len + tokens
    first_position = kv_len - q_len + first_row // GROUP
    last_token = tl.minimum((first_row + BLOCK_M - 1) // GROUP, q_len - 1)
    last_position = kv_len - q_len + last_token

    # The keys that the rows of this block see begin in first_tile and end before last_key.
    last_key = kv_len
    if IS_CAUSAL:
        last_key = tl.minimum(kv_len, last_position + 1)
    last_key = tl.maximum(last_key, 0)
    first_tile = 0
    if HAS_WINDOW:
        first_tile = tl.maximum(first_position - window_left, 0) // BLOCK_N
    num_tiles = tl.maximum(tl.cdiv(last_key, BLOCK_N) - first_tile, 0)
    tiles_per_split = tl.cdiv(num_tiles, num_splits)
    # Each split gets whole tiles; the last ones may get none.
    begin = (first_tile + tl.minimum(split * tiles_per_split, num_tiles)) * BLOCK_N
    end = (first_tile + tl.minimum((split + 1) * tiles_per_split, num_tiles)) * BLOCK_N

    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < HEAD_DIM
    KV_STRIDE: tl.constexpr = KV_HEADS * HEAD_DIM
    head_base = kv_head * HEAD_DIM
    offs_k = head_base + offs_n[None, :] * KV_STRIDE + offs_d[:, None]
    offs_v = head_base + offs_n[:, None] * KV_STRIDE + offs_d[None, :]
    # Row of (tokens × heads), the leading index of q, out, partials and logsums.
    out_rows = (q_start + tokens) * (KV_HEADS * GROUP) + heads
    mask_q = is_row[:, None] & mask_d[None, :]
    if IS_SPLIT:
        # In a batch with a long sequence, short ones have many splits without a key. These must
        # cost next to nothing: they read no queries and write only the sum.
        mask_q = mask_q & (begin < end)
    q_tile = tl.load(q + out_rows[:, None] * HEAD_DIM + offs_d[None, :], mask=mask_q, other=0.0)

    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    IS_PADDED: tl.constexpr = BLOCK_D != HEAD_DIM
    masked_from = begin
    if BLOCK_M >= 128 and not HAS_WINDOW:
        # Prefill is bound by compute: skip the masks where every row sees every key of a tile.
        # Decoding is bound by memory: a single loop keeps its loads in flight.
        first_hidden = kv_len
        if IS_CAUSAL:
            first_hidden = tl.minimum(kv_len, first_position + 1)
        masked_from = tl.maximum(first_hidden, 0) // BLOCK_N * BLOCK_N
        masked_from = tl.minimum(tl.maximum(masked_from, begin), end)
        acc, row_max, row_sum = _attend_range(
            acc, row_max, row_sum, q_tile, k, v, page_row, kv_start, begin, masked_from,
            kv_len, q_positions, score_scale, cap_log2, window_left, offs_k, offs_v, mask_d,
            KV_STRIDE, BLOCK_N, PAGE_SIZE, HAS_PAGES, IS_CAUSAL, HAS_WINDOW, HAS_SOFTCAP,
            IS_PADDED, False,
        )  # fmt: skip
    acc, row_max, row_sum = _attend_range(
        acc, row_max, row_sum, q_tile, k, v, page_row, kv_start, masked_from, end, kv_len,
        q_positions, score_scale, cap_log2, window_left, offs_k, offs_v, mask_d,
        KV_STRIDE, BLOCK_N, PAGE_SIZE, HAS_PAGES, IS_CAUSAL, HAS_WINDOW, HAS_SOFTCAP,
        IS_PADDED, True,
    )  # fmt: skip

    # A row without a key has the sum 0, and its result is 0.
    divisor = tl.where(row_sum == 0.0, 1.0, row_sum)
    acc = acc / divisor[:, None]
    if IS_SPLIT:
        slots = out_rows * num_splits + split
        tl.store(partials + slots[:, None] * HEAD_DIM + offs_d[None, :], acc, mask=mask_q)
        # log2(1) = 0, so this is row_max = -inf for a row without a key.
        tl.store(logsums + slots, row_max + tl.log2(divisor), mask=is_row)
    else:
        target = out + out_rows[:, None] * HEAD_DIM + offs_d[None, :]
        tl.store(target, acc.to(out.dtype.element_ty), mask=mask_q)


@triton.jit(do_not_specialize=["num_splits"])
def combine_splits(
    partials, logsums, out, num_splits,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    """Combine the splits of one query row, weighted by their shares of the softmax sum. Grid:
    (tokens × heads). Layouts as `attend` writes them."""
    row = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, MAX_SPLITS)
    all_logsums = tl.load(
        logsums + row * num_splits + splits, mask=splits < num_splits, other=float("-inf")
    )
    top = tl.max(all_logsums, 0)
    # If no split has a key, the weights become 0 / 1 and not NaN.
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2(all_logsums - top), 0)
    total = tl.where(total == 0.0, 1.0, total)

    offs_d = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_D], dtype=tl.float32)
    for s0 in range(0, num_splits, COMBINE_CHUNK):
        part = s0 + tl.arange(0, COMBINE_CHUNK)
        is_part = part < num_splits
        logsum = tl.load(logsums + row * num_splits + part, mask=is_part, other=float("-inf"))
        # A split without a key has not written its partials.
        has_key = logsum > float("-inf")
        values = tl.load(
            partials + (row * num_splits + part)[:, None] * HEAD_DIM + offs_d[None, :],
            mask=has_key[:, None] & (offs_d < HEAD_DIM)[None, :],
            other=0.0,
        )
        acc += tl.sum(values * (tl.exp2(logsum - top) / total)[:, None], 0)
    tl.store(out + row * HEAD_DIM + offs_d, acc.to(out.dtype.element_ty), mask=offs_d < HEAD_DIM)


@triton.jit(do_not_specialize=["table_width"])
def append_to_pages(
    k_new, v_new, k, v, block_table, cache_lens, table_width,
    KV_STRIDE: tl.constexpr, BLOCK: tl.constexpr, PAGE_SIZE: tl.constexpr,
):  # fmt: skip
    """Append the key and value of one new token to its sequence.

    Grid: (new tokens of a sequence, sequences). k_new and v_new (sequences, new tokens,
    kv_heads, head_dim); KV_STRIDE = kv_heads × head_dim, BLOCK the next power of two. Runs
    before `attend` on the same stream, which gives the order. Each sequence owns the pages that
    it writes (shared pages are full), so no two programs write the same place.
    """
    token = tl.program_id(0)
    sequence = tl.program_id(1).to(tl.int64)
    position = tl.load(cache_lens + sequence) + token
    # Beyond the table there is no page of this sequence: drop the key rather than overwrite the
    # page of another.
    has_page = (position >= 0) & (position < table_width * PAGE_SIZE)
    page = tl.load(
        block_table + sequence * table_width + position // PAGE_SIZE, mask=has_page, other=0
    ).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    mask = (offs < KV_STRIDE) & has_page
    source = (sequence * tl.num_programs(0) + token) * KV_STRIDE + offs
    target = (page * PAGE_SIZE + position % PAGE_SIZE) * KV_STRIDE + offs
    tl.store(k + target, tl.load(k_new + source, mask=mask), mask=mask)
    tl.store(v + target, tl.load(v_new + source, mask=mask), mask=mask)
