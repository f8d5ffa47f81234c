"""What a process repeats: the beat, heartbeats, watchdogs. A step that fails ends no loop.

Runs in the thread or greenlet that calls it, and ends with it.
"""

import logging
import time
from collections.abc import Callable
from typing import NoReturn

_log = logging.getLogger(__name__)


def run_periodically(
    step: Callable[[], None],
    every_s: float,
    what: str,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> NoReturn:
    """Run `step`, pause for `every_s`, and repeat. `what` names the step in the log."""
    while True:
        run_step(step, what)
        sleep(every_s)


def run_step(
    step: Callable[[], None],
    what: str,
    *,
    let_through: type[Exception] | tuple[type[Exception], ...] = (),
) -> None:
    """Run one step of a loop. A failure is logged with its traceback, and the loop goes on. Raises
    what `let_through` names."""
    try:
        step()
    except let_through:
        raise
    except Exception:  # at the top of a thread: the loop must not end
        _log.exception("%s failed", what)
