"""Text for a terminal: control characters made visible, sizes and durations."""

import itertools

_SUFFIXES = ("B", "KiB", "MiB", "GiB", "TiB")


def _replacements() -> dict[int, str]:
    # C0 has symbols of its own (␛ for ESC). A carriage return is dropped: it would let text
    # overwrite its line, and CRLF stays one line end.
    table = {code: chr(0x2400 + code) for code in range(0x20)}
    del table[ord("\n")], table[ord("\t")]
    table[ord("\r")] = ""
    table[0x7F] = "\u2421"
    # C1 starts escape sequences with one character. The others reorder the text shown.
    for code in itertools.chain(range(0x80, 0xA0), range(0x202A, 0x202F), range(0x2066, 0x206A)):
        table[code] = f"\\u{code:04x}"
    return table


_REPLACEMENTS = _replacements()


def harmless(text: str) -> str:
    """Make control characters visible, so that text cannot control the terminal. Newline and tab
    stay. Any piece of a text can be given: characters are replaced one by one."""
    return text.translate(_REPLACEMENTS)


def one_line(text: str) -> str:
    """`harmless` on one line: any white space becomes one space."""
    return harmless(" ".join(text.split()))


def size(num_bytes: int) -> str:
    """`1.5 GiB`"""
    exponent = min(max(0, (num_bytes.bit_length() - 1) // 10), len(_SUFFIXES) - 1)
    return f"{num_bytes / 1024**exponent:.{min(1, exponent)}f} {_SUFFIXES[exponent]}"


def duration(seconds: float) -> str:
    """`42s`, `3m 20s`, `5h 07m`, `2d 03h`: at most two units."""
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 1:
        return f"{whole}s"
    if hours < 1:
        return f"{minutes}m {whole % 60:02}s"
    if days < 1:
        return f"{hours}h {minutes % 60:02}m"
    return f"{days}d {hours % 24:02}h"
