"""Who has room, and who has to go."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InsufficientMemory, TooManyModels
from worker.agent.placement import MemoryLimits, Occupant, free_bytes, place

_LIMITS = MemoryLimits(available_bytes=1000, memory_limit_bytes=0, reserve_bytes=0, max_occupants=0)


def _occupant(name: str, **fields: object) -> Occupant:
    occupant = Occupant(
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
    return replace(occupant, **fields)  # type: ignore[arg-type]


def test_memory_that_others_were_promised_is_not_free() -> None:
    assert free_bytes(_LIMITS, [_occupant("a", estimated_bytes=400)]) == 700


def test_mapped_weights_are_not_free_and_shared_ones_count_once() -> None:
    occupants = [
        _occupant("a", path="x", mapped_bytes=60),
        _occupant("b", path="x", mapped_bytes=50),
        _occupant("c", mapped_bytes=10),
    ]
    assert free_bytes(_LIMITS, occupants) == 1000 - 60 - 10


def test_the_reserve_and_the_limit_of_the_node_hold() -> None:
    assert free_bytes(replace(_LIMITS, reserve_bytes=300), []) == 700
    assert free_bytes(replace(_LIMITS, memory_limit_bytes=250), [_occupant("a")]) == 150
    assert free_bytes(replace(_LIMITS, memory_limit_bytes=50), [_occupant("a")]) == 0


def test_what_fits_is_taken_in_and_nobody_goes() -> None:
    assert place(1000, _LIMITS, [_occupant("a")]).fits


def test_the_least_recently_used_goes_first() -> None:
    occupants = [_occupant("new", used_at=9.0), _occupant("old", used_at=1.0)]
    placement = place(1050, _LIMITS, occupants)
    assert (placement.fits, placement.evict, placement.refusal) == (False, "old", None)


def test_one_goes_rather_than_two() -> None:
    small = _occupant("small", estimated_bytes=10, resident_bytes=10, used_at=1.0)
    large = _occupant("large", used_at=9.0)
    assert place(1090, _LIMITS, [small, large]).evict == "large"


def test_who_takes_room_elsewhere_does_not_go_for_memory() -> None:
    elsewhere = _occupant("elsewhere", estimated_bytes=0, resident_bytes=0, used_at=1.0)
    both = [_occupant("a", used_at=2.0), _occupant("b", used_at=3.0)]
    assert place(1150, _LIMITS, [elsewhere, *both]).evict == "a"


def test_nobody_goes_when_that_would_not_help() -> None:
    placement = place(1201, _LIMITS, [_occupant("a"), _occupant("b")])
    assert placement.evict is None
    assert isinstance(placement.refusal, InsufficientMemory)
    assert placement.free_bytes == 1000
    assert not placement.may_come


@pytest.mark.parametrize(("is_pinned", "may_come"), [(False, True), (True, False)])
def test_the_busy_stay_but_may_go_later(is_pinned: bool, may_come: bool) -> None:
    occupants = [_occupant("a", is_evictable=False, is_pinned=is_pinned)]
    placement = place(1100, _LIMITS, occupants)
    assert placement.refusal is not None
    assert placement.may_come is may_come


def test_who_is_leaving_is_waited_for() -> None:
    occupants = [_occupant("gone", is_leaving=True), _occupant("idle")]
    placement = place(1100, _LIMITS, occupants)
    assert (placement.fits, placement.evict, placement.refusal) == (False, None, None)


def test_the_number_of_models_is_bounded() -> None:
    limits = replace(_LIMITS, max_occupants=1)
    assert place(1, limits, [_occupant("a")]).evict == "a"
    busy = [_occupant("a", is_evictable=False)]
    placement = place(1, limits, busy)
    assert isinstance(placement.refusal, TooManyModels)
    assert placement.may_come


_amounts = st.integers(0, 500)
_tenants = st.lists(
    st.builds(
        lambda estimated, resident, mapped, evictable, leaving, used: _occupant(
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
    unique_by=lambda occupant: occupant.id,
)


@given(needed=_amounts, occupants=_tenants, available=_amounts, most=st.integers(0, 4))
def test_exactly_one_answer_and_never_more_than_is_free(
    needed: int, occupants: list[Occupant], available: int, most: int
) -> None:
    limits = replace(_LIMITS, available_bytes=available, max_occupants=most)
    placement = place(needed, limits, occupants)
    assert sum((placement.fits, placement.evict is not None, placement.refusal is not None)) <= 1
    if placement.fits:
        assert needed <= free_bytes(limits, occupants)
        assert most == 0 or len(occupants) < most
    if placement.evict is not None:
        (victim,) = (t for t in occupants if t.id == placement.evict)
        assert victim.is_evictable and not victim.is_leaving
