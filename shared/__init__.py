"""What the web tier and the replicas agree on: messages, names, errors, settings, registry.

Imports nothing but the standard library, redis, celery, kombu and msgspec.
"""
