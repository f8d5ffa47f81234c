"""The headers of a client's rate limits, with OpenAI's names and units."""

from shared.limits import Allowances

RATES = ("requests", "tokens")
PARTS = ("limit", "remaining", "reset")


def header(part: str, rate: str) -> str:
    return f"x-ratelimit-{part}-{rate}"


def headers_of(allowances: Allowances) -> dict[str, str]:
    headers: dict[str, str] = {}
    for rate in RATES:
        if (allowance := getattr(allowances, rate)) is not None:
            values = (allowance.limit, allowance.remaining, duration(allowance.reset_s))
            headers |= {header(p, rate): str(v) for p, v in zip(PARTS, values, strict=True)}
    return headers


def duration(seconds: float) -> str:
    """Format a time as OpenAI does: 20ms, 1.5s, 6m0s."""
    seconds = round(seconds, 3)
    if seconds < 1:
        return f"{round(1000 * seconds)}ms"
    minutes, rest = divmod(seconds, 60)
    whole = f"{rest:.3f}".rstrip("0").rstrip(".")
    return f"{int(minutes)}m{whole}s" if minutes else f"{whole}s"
