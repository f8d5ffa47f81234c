"""Connections to Redis and what to do while it is away. No key is named here."""
