"""The functions in flash-attn's place take what it takes, and refuse what they cannot do."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from shared.errors import EngineError
from worker.engines.exllamav2.attention.call import PackedCall, PagedCall
from worker.engines.exllamav2.attention.flash_api import FlashApi

# flash_attn/flash_attn_interface.py of flash-attn 2.8.3.
_PARAMETERS = {
    "flash_attn_with_kvcache": "q k_cache v_cache k v rotary_cos rotary_sin cache_seqlens "
    "cache_batch_idx cache_leftpad block_table softmax_scale causal window_size softcap "
    "rotary_interleaved alibi_slopes num_splits return_softmax_lse",
    "flash_attn_func": "q k v dropout_p softmax_scale causal window_size softcap alibi_slopes "
    "deterministic return_attn_probs",
    "flash_attn_varlen_func": "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k "
    "dropout_p softmax_scale causal window_size softcap alibi_slopes deterministic "
    "return_attn_probs block_table",
}


class Recorder:
    """Keeps the calls that arrive."""

    name = "recorder"

    def __init__(self) -> None:
        self.paged_calls: list[PagedCall] = []
        self.packed_calls: list[PackedCall] = []

    def paged(self, call: PagedCall) -> torch.Tensor:
        self.paged_calls.append(call)
        return call.q

    def packed(self, call: PackedCall) -> torch.Tensor:
        self.packed_calls.append(call)
        return call.q


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def api(recorder: Recorder) -> FlashApi:
    return FlashApi(recorder)


def half(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.float16)


def paged(**changes: Any) -> dict[str, Any]:
    """Arguments as ExLlamaV2 gives them for two sequences of one token."""
    arguments: dict[str, Any] = {
        "q": half(2, 1, 4, 64),
        "k": half(2, 1, 2, 64),
        "v": half(2, 1, 2, 64),
        "k_cache": half(3, 256, 2, 64),
        "v_cache": half(3, 256, 2, 64),
        "cache_seqlens": torch.zeros(2, dtype=torch.int32),
        "block_table": torch.zeros(2, 1, dtype=torch.int32),
        "causal": True,
        "softmax_scale": 0.125,
    }
    return arguments | changes


@pytest.mark.parametrize("name", _PARAMETERS)
def test_parameters_are_those_of_flash_attn_in_their_order(api: FlashApi, name: str) -> None:
    assert " ".join(inspect.signature(getattr(api, name)).parameters) == _PARAMETERS[name]


def test_the_call_of_exllamav2_arrives_whole(api: FlashApi, recorder: Recorder) -> None:
    api.flash_attn_with_kvcache(**paged(window_size=(7, 7), softcap=30.0))
    (call,) = recorder.paged_calls
    assert (call.window_left, call.softcap, call.softmax_scale) == (7, 30.0, 0.125)
    assert call.num_appended == 1


def test_the_scale_of_flash_attn_is_the_default(api: FlashApi, recorder: Recorder) -> None:
    api.flash_attn_with_kvcache(**paged(softmax_scale=None))
    assert recorder.paged_calls[0].softmax_scale == 0.125


def test_dense_calls_are_packed(api: FlashApi, recorder: Recorder) -> None:
    out = api.flash_attn_func(half(2, 3, 4, 64), half(2, 5, 2, 64), half(2, 5, 2, 64), causal=True)
    (call,) = recorder.packed_calls
    assert out.shape == (2, 3, 4, 64)
    assert call.q_starts.tolist() == [0, 3, 6] and call.kv_starts.tolist() == [0, 5, 10]
    assert call.max_q_len == 3 and call.is_causal


@pytest.mark.parametrize(
    "changes",
    [
        {"rotary_cos": half(1)},
        {"rotary_sin": half(1)},
        {"cache_batch_idx": torch.zeros(2)},
        {"cache_leftpad": torch.zeros(2)},
        {"alibi_slopes": torch.zeros(4)},
        {"return_softmax_lse": True},
        {"block_table": None},
        {"cache_seqlens": None},
        {"cache_seqlens": 5},
        {"q": half(2, 2, 4, 64), "k": None, "v": None, "causal": False},
        {"q": half(2, 1, 4, 64).bfloat16()},
        {"k_cache": half(3, 256, 2, 64).float()},
        {"v": None},
        {"k": half(2, 2, 2, 64), "v": half(2, 2, 2, 64)},
        {"q": half(2, 1, 3, 64)},
        {"q": half(2, 1, 4, 32)},
        {"k_cache": half(3, 100, 2, 64), "v_cache": half(3, 100, 2, 64)},
        {"k_cache": half(3, 256, 2, 128)[..., :64]},
        {"cache_seqlens": torch.zeros(2, dtype=torch.int64)},
        {"cache_seqlens": torch.zeros(3, dtype=torch.int32)},
        {"block_table": torch.zeros(1, 2, dtype=torch.int32)},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_paged_call_that_cannot_be_served_is_refused(
    api: FlashApi, recorder: Recorder, changes: dict[str, Any]
) -> None:
    with pytest.raises(EngineError):
        api.flash_attn_with_kvcache(**paged(**changes))
    assert not recorder.paged_calls


@pytest.mark.parametrize("head_dim", [4, 100, 264, 512])
def test_head_sizes_without_a_kernel_are_refused(api: FlashApi, head_dim: int) -> None:
    q = half(1, 1, 1, head_dim)
    with pytest.raises(EngineError, match="head size"):
        api.flash_attn_func(q, q, q)


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout_p": 0.1},
        {"alibi_slopes": torch.zeros(4)},
        {"return_attn_probs": True},
        {"window_size": (5, 5)},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_dense_call_that_cannot_be_served_is_refused(
    api: FlashApi, changes: dict[str, Any]
) -> None:
    q = half(1, 2, 1, 64)
    with pytest.raises(EngineError):
        api.flash_attn_func(q, q, q, **changes)


def test_an_unknown_argument_is_an_error(api: FlashApi) -> None:
    functions: list[Callable[..., object]] = [getattr(api, name) for name in _PARAMETERS]
    for function in functions:
        with pytest.raises(TypeError):
            function(half(1), half(1), half(1), half(1), half(1), 1, 1, sinks=None)
