"""What the other tests stand on: the reference, and the poison in what is not written."""

import pytest
import torch

from tests.kernels.reference import attend, error


def test_new_tensors_are_poisoned(device: torch.device) -> None:
    assert bool(torch.empty((3, 2), device=device).isnan().all())
    assert bool(torch.empty_like(torch.zeros(3, device=device)).isnan().all())


def test_an_error_of_a_poisoned_result_is_within_no_tolerance() -> None:
    assert not error(torch.empty(3), torch.ones(3)) < 1.0


@pytest.mark.parametrize("causal", [True, False])
def test_the_reference_is_torchs_attention(causal: bool, device: torch.device) -> None:
    q, k, v = torch.randn(3, 40, 2, 64, dtype=torch.float64, device=device)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(0, 1) for x in (q, k, v)), is_causal=causal
    )
    out = attend(q, k, v, 64**-0.5, causal)
    assert out.device.type == device.type
    assert error(out, expected.transpose(0, 1)) < 1e-12
