"""Who has room on a node, and who goes when there is none: arithmetic without side effects."""

from dataclasses import dataclass, replace

from shared.errors import InsufficientMemory, InsufficientResources, TooManyModels


@dataclass(frozen=True, slots=True)
class Tenant:
    """A replica that takes room on this node."""

    id: str
    path: str
    """Its weights: two replicas that map the same file share its pages."""
    estimated_bytes: int
    resident_bytes: int
    mapped_bytes: int
    is_leaving: bool
    is_evictable: bool
    """Neither pinned nor busy, and here for longer than the minimum residence time."""
    is_pinned: bool
    used_at: float
    """Unix time of the model's last request."""

    @property
    def needed_bytes(self) -> int:
        return max(self.estimated_bytes, self.resident_bytes)


@dataclass(frozen=True, slots=True)
class Limits:
    available_bytes: int
    """What the system says is free, file cache included."""
    memory_limit_bytes: int
    """What all replicas may take together; 0 = no limit."""
    reserve_bytes: int
    max_tenants: int
    """0 = no limit."""


def free_bytes(limits: Limits, tenants: list[Tenant]) -> int:
    """Memory that another replica may take.

    Weights that are mapped from a file count as free for the system, though a replica reads
    them at each step: they are taken off. So is what the others were promised and have not
    touched yet.
    """
    mapped: dict[str, int] = {}
    for tenant in tenants:
        mapped[tenant.path] = max(mapped.get(tenant.path, 0), tenant.mapped_bytes)
    untouched = sum(tenant.needed_bytes - tenant.resident_bytes for tenant in tenants)
    free = limits.available_bytes - sum(mapped.values()) - untouched - limits.reserve_bytes
    if limits.memory_limit_bytes:
        taken = sum(tenant.needed_bytes for tenant in tenants)
        free = min(free, limits.memory_limit_bytes - taken)
    return max(0, free)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a replica can be taken in. Neither `evict` nor `refusal`: somebody is leaving
    already, and that will do."""

    fits: bool = False
    evict: str | None = None
    """Id of the tenant that has to go first."""
    refusal: InsufficientResources | None = None
    may_come: bool = False
    """With a refusal: it would fit if those were gone that are only busy, or new."""
    free_bytes: int = 0
    """With a refusal."""


def judge(needed_bytes: int, limits: Limits, tenants: list[Tenant]) -> Verdict:
    """Say whether `needed_bytes` fit, who has to go, or why they do not.

    One goes rather than several, the least recently used one first; nobody goes when that
    would not help.
    """
    if _fits(needed_bytes, limits, tenants):
        return Verdict(fits=True)
    leaving = [tenant for tenant in tenants if tenant.is_leaving]
    if _fits_without(needed_bytes, limits, tenants, leaving):
        return Verdict()
    evictable = sorted(
        (t for t in tenants if t.is_evictable and not t.is_leaving), key=lambda t: t.used_at
    )
    for tenant in evictable:
        if _fits_without(needed_bytes, limits, tenants, [*leaving, tenant]):
            return Verdict(evict=tenant.id)
    helpful = [tenant for tenant in evictable if tenant.needed_bytes] or evictable
    for count in range(1, len(helpful) + 1):
        if _fits_without(needed_bytes, limits, tenants, [*leaving, *helpful[:count]]):
            return Verdict(evict=helpful[0].id)
    unpinned = [tenant for tenant in tenants if not tenant.is_pinned]
    return Verdict(
        refusal=_refusal(needed_bytes, limits, tenants),
        free_bytes=free_bytes(limits, tenants),
        may_come=_fits_without(needed_bytes, limits, tenants, unpinned),
    )


def _fits(needed_bytes: int, limits: Limits, tenants: list[Tenant]) -> bool:
    return needed_bytes <= free_bytes(limits, tenants) and not _is_full(limits, tenants)


def _is_full(limits: Limits, tenants: list[Tenant]) -> bool:
    return 0 < limits.max_tenants <= len(tenants)


def _fits_without(
    needed_bytes: int, limits: Limits, tenants: list[Tenant], gone: list[Tenant]
) -> bool:
    """Whether it fits once these are gone. What they have in memory of their own is free then."""
    returned = sum(tenant.resident_bytes - tenant.mapped_bytes for tenant in gone)
    later = replace(limits, available_bytes=limits.available_bytes + returned)
    return _fits(needed_bytes, later, [tenant for tenant in tenants if tenant not in gone])


def _refusal(needed_bytes: int, limits: Limits, tenants: list[Tenant]) -> InsufficientResources:
    free = free_bytes(limits, tenants)
    if needed_bytes <= free:
        return TooManyModels(
            f"This node keeps {limits.max_tenants} replicas at most (max_loaded_models), and "
            "none of them can go now. Unload one, or raise the limit."
        )
    return InsufficientMemory(
        f"The model needs about {_mib(needed_bytes)} of memory, {_mib(free)} are free."
    )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
