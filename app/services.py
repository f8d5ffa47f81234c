"""Access to the shared parts of this web process from inside a request."""

from typing import TYPE_CHECKING, cast

from flask import current_app

if TYPE_CHECKING:
    from app.factory import Services


def services() -> "Services":
    return cast("Services", current_app.extensions["llmis"])
