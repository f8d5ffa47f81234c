"""Case folding that keeps the number of characters, for the same pairs as RE2's."""

_EXTRA = str.maketrans({"\u1fd3": "\u0390", "\u1fe3": "\u03b0", "\ufb05": "\ufb06"})
"""Pairs of which Python's one-to-one foldings know nothing (CaseFolding.txt, status S)."""


def folded(text: str) -> str:
    """Texts that differ in case alone are the same then."""
    if text.isascii():
        return text.lower()
    return "".join(map(_fold, text.translate(_EXTRA)))


def _fold(char: str) -> str:
    for one in (char.casefold(), char.lower()):
        if len(one) == 1:
            return one
    return char
