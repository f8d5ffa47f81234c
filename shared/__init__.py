"""What app, worker and cli share: messages, names, errors, settings, queue, registry, denylist.

It imports none of them, and nothing but the standard library, redis, celery, kombu, msgspec and
re2.
"""
