"""Identifies the owner of a key or token, and its scope. It never logs a secret."""
