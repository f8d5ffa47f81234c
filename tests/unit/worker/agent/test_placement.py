"""Who has room, and who has to go."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InsufficientMemory, TooManyModels
from worker.agent.room import Limits, Tenant, free_bytes, judge

_LIMITS = Limits(available_bytes=1000, memory_limit_bytes=0, reserve_bytes=0, max_tenants=0)


def _tenant(name: str, **fields: object) -> Tenant:
    tenant = Tenant(
        id=name,
        path=f"{name}.gguf",
        estimated_bytes=100,
        resident_bytes=100,
        mapped_bytes=0,
        is_leaving=False,
        is_evictable=True,
        is_pinned=False,
        used_at=0.0,
    )
    return replace(tenant, **fields)  # type: ignore[arg-type]


def test_memory_that_others_were_promised_is_not_free() -> None:
    assert free_bytes(_LIMITS, [_tenant("a", estimated_bytes=400)]) == 700


def test_mapped_weights_are_not_free_and_shared_ones_count_once() -> None:
    tenants = [
        _tenant("a", path="x", mapped_bytes=60),
        _tenant("b", path="x", mapped_bytes=50),
        _tenant("c", mapped_bytes=10),
    ]
    assert free_bytes(_LIMITS, tenants) == 1000 - 60 - 10


def test_the_reserve_and_the_limit_of_the_node_hold() -> None:
    assert free_bytes(replace(_LIMITS, reserve_bytes=300), []) == 700
    assert free_bytes(replace(_LIMITS, memory_limit_bytes=250), [_tenant("a")]) == 150
    assert free_bytes(replace(_LIMITS, memory_limit_bytes=50), [_tenant("a")]) == 0


def test_what_fits_is_taken_in_and_nobody_goes() -> None:
    assert judge(1000, _LIMITS, [_tenant("a")]).fits


def test_the_least_recently_used_goes_first() -> None:
    tenants = [_tenant("new", used_at=9.0), _tenant("old", used_at=1.0)]
    verdict = judge(1050, _LIMITS, tenants)
    assert (verdict.fits, verdict.evict, verdict.refusal) == (False, "old", None)


def test_one_goes_rather_than_two() -> None:
    small = _tenant("small", estimated_bytes=10, resident_bytes=10, used_at=1.0)
    large = _tenant("large", used_at=9.0)
    assert (
        judge(
            1090,
            _LIMITS,
            [small, large],
        ).evict
        == "large"
    )


def test_who_takes_room_elsewhere_does_not_go_for_memory() -> None:
    elsewhere = _tenant("elsewhere", estimated_bytes=0, resident_bytes=0, used_at=1.0)
    both = [_tenant("a", used_at=2.0), _tenant("b", used_at=3.0)]
    assert judge(1150, _LIMITS, [elsewhere, *both]).evict == "a"


def test_nobody_goes_when_that_would_not_help() -> None:
    verdict = judge(1201, _LIMITS, [_tenant("a"), _tenant("b")])
    assert verdict.evict is None
    assert isinstance(verdict.refusal, InsufficientMemory)
    assert verdict.free_bytes == 1000
    assert not verdict.may_come


@pytest.mark.parametrize(("is_pinned", "may_come"), [(False, True), (True, False)])
def test_the_busy_stay_but_may_go_later(is_pinned: bool, may_come: bool) -> None:
    tenants = [_tenant("a", is_evictable=False, is_pinned=is_pinned)]
    verdict = judge(1100, _LIMITS, tenants)
    assert verdict.refusal is not None
    assert verdict.may_come is may_come


def test_who_is_leaving_is_waited_for() -> None:
    tenants = [_tenant("gone", is_leaving=True), _tenant("idle")]
    verdict = judge(1100, _LIMITS, tenants)
    assert (verdict.fits, verdict.evict, verdict.refusal) == (False, None, None)


def test_the_number_of_models_is_bounded() -> None:
    limits = replace(_LIMITS, max_tenants=1)
    assert judge(1, limits, [_tenant("a")]).evict == "a"
    busy = [_tenant("a", is_evictable=False)]
    verdict = judge(1, limits, busy)
    assert isinstance(verdict.refusal, TooManyModels)
    assert verdict.may_come


_amounts = st.integers(0, 500)
_tenants = st.lists(
    st.builds(
        lambda estimated, resident, mapped, evictable, leaving, used: _tenant(
            f"t{estimated}-{resident}-{used}",
            estimated_bytes=estimated,
            resident_bytes=resident,
            mapped_bytes=min(mapped, resident),
            is_evictable=evictable,
            is_leaving=leaving,
            used_at=used,
        ),
        _amounts,
        _amounts,
        _amounts,
        st.booleans(),
        st.booleans(),
        st.floats(0, 100),
    ),
    max_size=5,
    unique_by=lambda tenant: tenant.id,
)


@given(needed=_amounts, tenants=_tenants, available=_amounts, most=st.integers(0, 4))
def test_exactly_one_answer_and_never_more_than_is_free(
    needed: int, tenants: list[Tenant], available: int, most: int
) -> None:
    limits = replace(_LIMITS, available_bytes=available, max_tenants=most)
    verdict = judge(needed, limits, tenants)
    assert sum((verdict.fits, verdict.evict is not None, verdict.refusal is not None)) <= 1
    if verdict.fits:
        assert needed <= free_bytes(limits, tenants)
        assert most == 0 or len(tenants) < most
    if verdict.evict is not None:
        (victim,) = (t for t in tenants if t.id == verdict.evict)
        assert victim.is_evictable and not victim.is_leaving
