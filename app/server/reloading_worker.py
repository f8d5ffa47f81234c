"""The worker class in gunicorn's master. The master keeps the code that it started with for as long
as the service runs; each worker starts with the code that is on disk then.

Imports nothing of the project: a worker inherits every module that the master has imported.
"""

import importlib
import sys
import time
from typing import Any

from gunicorn.workers.ggevent import GeventWorker

_OURS = {"app", "shared", "celeryconfig"}
_PAUSE_S = 1.0
"""Pause before the master tries again."""


class ReloadingWorker(GeventWorker):  # type: ignore[misc]
    """Becomes an `app.server.worker.WebWorker` in its own process.

    The master hands over the attributes below and gunicorn's own. They are plain values, for master
    and worker may have different versions of the code.
    """

    is_up: Any
    """1 = this worker serves; a ctypes value in memory shared with the master."""
    is_leaving = False
    """The master has sent it SIGTERM. Known to the master alone."""
    is_stopping: Any
    """1 = the whole service stops; 0 = a worker that ends is replaced. Shared by all."""
    has_served: Any
    """1 = a worker of this master has served. Shared by all."""

    def init_process(self) -> None:
        """Run. If the first worker cannot start, the service does not. A later failure ends this
        worker alone: others may serve, and the cause may be mended meanwhile."""
        try:
            _forget_modules()
            self.__class__ = importlib.import_module("app.server.worker").WebWorker
            self.init_process()
        except Exception:  # at the top of the process: whatever the new code raises
            if self.booted or not self.has_served.value:
                raise
            self.log.exception("this web process cannot start; those that run serve on")
            time.sleep(_PAUSE_S)
            sys.exit(1)


def _forget_modules() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in _OURS]:
        del sys.modules[name]
    importlib.invalidate_caches()
