"""The parts that the requests of one web process share, and access to them from inside a request.

Only views, middleware and the WebSocket call `services()`; all else is handed what it needs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import redis
from flask import current_app

from app.auth.authenticator import Authenticator
from app.events.hub import Hub
from app.jobs.build import JobBuilder
from app.jobs.dispatcher import Dispatcher
from app.models.catalog import Catalog
from app.models.last_used import LastUsed
from app.models.loader import Loader
from app.streaming.job_supervisor import RelayParts
from shared.clock import clock
from shared.denylist.file import DenylistFile
from shared.registry.directory import Directory
from shared.settings.fields import Settings


@dataclass(slots=True, kw_only=True)
class Services:
    """Made once a process, by `app.factory`; `current_app.extensions["llmis"]`."""

    settings: Settings
    client: "redis.Redis"
    hub: Hub
    dispatcher: Dispatcher
    directory: Directory
    catalog: Catalog
    loader: Loader
    last_used: LastUsed
    job_builder: JobBuilder
    relay: RelayParts
    authenticator: Authenticator
    denylist: DenylistFile | None = None
    """None = no filter."""
    is_stopping: bool = False
    started_at: float = field(default_factory=clock.now)
    """Unix time in seconds."""
    reload_web: Callable[[], None] | None = None
    """Replaces the web processes of this host by new ones; None = no master can do it."""
    close_sockets: set[Callable[[], None]] = field(default_factory=set)
    """Each closes one open WebSocket; called when the process stops."""


def services() -> Services:
    return cast(Services, current_app.extensions["llmis"])
