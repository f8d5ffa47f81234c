"""Whose request it is: limits and turns in the queue are its owner's, and so is the answer."""

import hashlib

from flask import Flask, g, request

ANONYMOUS = "anonymous"


def register(app: Flask) -> None:
    app.before_request(take_owner)


def take_owner() -> None:
    """Name the owner by the API key that came with the request. The key itself is kept nowhere."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    g.owner = ANONYMOUS
    if scheme.lower() == "bearer" and key.strip():
        g.owner = f"key-{hashlib.sha256(key.strip().encode()).hexdigest()[:24]}"
