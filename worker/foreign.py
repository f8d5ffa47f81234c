"""The border to foreign code that raises exceptions of any class."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def foreign_errors(translate: Callable[[Exception], Exception]) -> Iterator[None]:
    """Raise `translate(exc)` in place of any exception in the block."""
    try:
        yield
    except Exception as exc:  # exllamav2, torch, tokenizers and llguidance raise every class
        raise translate(exc) from exc
