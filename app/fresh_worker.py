"""The worker class that gunicorn's master knows. The master lives as long as the service and keeps
the code that it began with; each of its workers begins with the code that is there now.

Imports nothing of the project: what the master has imported, a worker would have, too.
"""

import importlib
import sys
import time
from typing import Any

from gunicorn.workers.ggevent import GeventWorker

_OURS = {"app", "shared", "celeryconfig"}
_PAUSE_S = 1.0
"""Before the master may try again."""


class FreshWorker(GeventWorker):  # type: ignore[misc]
    """Becomes an `app.web_worker.WebWorker` in its own process.

    What the master hands over are the attributes here and gunicorn's own. They are plain: the two
    may be of different versions.
    """

    is_up: Any
    """Shared by the master and this worker, a ctypes value: it serves."""
    is_leaving = False
    """The master's: it has been told to end."""
    is_stopping: Any
    """Shared by all: everything is to stop. Else a worker that ends is replaced."""
    denylist_name = ""
    denylist = b""
    """Both as in `app.heritage`."""
    has_served: Any
    """Shared by all: some worker of this master has been up."""

    def init_process(self) -> None:
        """Run. The first worker that cannot start takes the master along; a later one does not:
        others may serve, and what is wrong may be mended meanwhile."""
        try:
            _forget_modules()
            self.__class__ = importlib.import_module("app.web_worker").WebWorker
            self.init_process()
        except Exception:
            if self.booted or not self.has_served.value:
                raise
            self.log.exception("this web process cannot start; those that run serve on")
            time.sleep(_PAUSE_S)
            sys.exit(1)


def _forget_modules() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in _OURS]:
        del sys.modules[name]
    importlib.invalidate_caches()
