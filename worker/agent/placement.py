"""Placement: whether a replica fits on a node, and which one to evict if not. No side effects."""

from dataclasses import dataclass, replace

from shared.errors import InsufficientMemory, InsufficientResources, TooManyModels
from worker.agent.estimate.base import mib_text


@dataclass(frozen=True, slots=True)
class Occupant:
    """A replica of this node, as placement sees it."""

    id: str
    path: str
    """Its weights: two replicas that map the same file share its pages."""
    estimated_bytes: int
    resident_bytes: int
    mapped_bytes: int
    is_leaving: bool
    is_evictable: bool
    """Neither pinned nor busy, and ready for at least the minimum residence time."""
    is_pinned: bool
    used_at: float
    """Unix time of the model's last request."""

    @property
    def needed_bytes(self) -> int:
        return max(self.estimated_bytes, self.resident_bytes)


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """What binds the replicas of a node."""

    available_bytes: int
    """Free memory by the system, file cache included."""
    memory_limit_bytes: int
    """For all replicas together; 0 = no limit."""
    reserve_bytes: int
    """Stays free."""
    max_occupants: int
    """0 = no limit."""


def free_bytes(limits: MemoryLimits, occupants: list[Occupant]) -> int:
    """Memory that another replica may take, never below 0. Two amounts are taken off what the
    system calls free: mapped weights, which count as reclaimable though every step reads them, and
    promised memory that is not touched yet."""
    mapped: dict[str, int] = {}
    for occupant in occupants:
        mapped[occupant.path] = max(mapped.get(occupant.path, 0), occupant.mapped_bytes)
    untouched = sum(occupant.needed_bytes - occupant.resident_bytes for occupant in occupants)
    free = limits.available_bytes - sum(mapped.values()) - untouched - limits.reserve_bytes
    if limits.memory_limit_bytes:
        taken = sum(occupant.needed_bytes for occupant in occupants)
        free = min(free, limits.memory_limit_bytes - taken)
    return max(0, free)


@dataclass(frozen=True, slots=True)
class Placement:
    """Whether a replica fits. If not and neither `evict` nor `refusal` is set, it will fit as
    soon as the replicas that are stopping have ended."""

    fits: bool = False
    evict: str | None = None
    """Id of the occupant to evict first."""
    refusal: InsufficientResources | None = None
    may_come: bool = False
    """With a refusal: it would fit without the unpinned occupants, which are busy or new now."""
    free_bytes: int = 0
    """With a refusal: what the replica could have."""


def place(needed_bytes: int, limits: MemoryLimits, occupants: list[Occupant]) -> Placement:
    """Decide whether `needed_bytes` fit, which occupant to evict, or why they do not fit. One
    eviction is preferred to several, then the least recently used occupant. No occupant is evicted
    if that would not make room."""
    if _fits(needed_bytes, limits, occupants):
        return Placement(fits=True)
    leaving = [occupant for occupant in occupants if occupant.is_leaving]
    if _fits_without(needed_bytes, limits, occupants, leaving):
        return Placement()
    evictable = [one for one in occupants if one.is_evictable and not one.is_leaving]
    evictable.sort(key=lambda one: one.used_at)
    for occupant in evictable:
        if _fits_without(needed_bytes, limits, occupants, [*leaving, occupant]):
            return Placement(evict=occupant.id)
    # Several have to go. Those on other devices give no memory, so they come in only where
    # there are no others, for `max_occupants`. One is evicted; the caller decides again after it.
    helpful = [occupant for occupant in evictable if occupant.needed_bytes] or evictable
    for count in range(1, len(helpful) + 1):
        if _fits_without(needed_bytes, limits, occupants, [*leaving, *helpful[:count]]):
            return Placement(evict=helpful[0].id)
    unpinned = [occupant for occupant in occupants if not occupant.is_pinned]
    return Placement(
        refusal=_refusal(needed_bytes, limits, occupants),
        free_bytes=free_bytes(limits, occupants),
        may_come=_fits_without(needed_bytes, limits, occupants, unpinned),
    )


def _fits(needed_bytes: int, limits: MemoryLimits, occupants: list[Occupant]) -> bool:
    is_full = 0 < limits.max_occupants <= len(occupants)
    return needed_bytes <= free_bytes(limits, occupants) and not is_full


def _fits_without(
    needed_bytes: int, limits: MemoryLimits, occupants: list[Occupant], gone: list[Occupant]
) -> bool:
    """Whether it fits once these are gone."""
    # Their private memory becomes free; mapped pages counted as available already.
    returned = sum(occupant.resident_bytes - occupant.mapped_bytes for occupant in gone)
    later = replace(limits, available_bytes=limits.available_bytes + returned)
    return _fits(needed_bytes, later, [occupant for occupant in occupants if occupant not in gone])


def _refusal(
    needed_bytes: int, limits: MemoryLimits, occupants: list[Occupant]
) -> InsufficientResources:
    free = free_bytes(limits, occupants)
    if needed_bytes <= free:
        return TooManyModels(
            f"This node runs {limits.max_occupants} replicas at most (max_loaded_models), and "
            "none of them can be evicted now. Unload a model or raise the limit."
        )
    return InsufficientMemory(
        f"The model needs about {mib_text(needed_bytes)} of memory, {mib_text(free)} are free."
    )
