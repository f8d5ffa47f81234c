"""The web tier: HTTP, SSE and WebSocket. Stateless; imports no engine and no worker module.

Imports nothing here: gunicorn's master reads `app.gunicorn_conf` before gevent has patched the
standard library. The application is made by `app.factory.create_app`.
"""
