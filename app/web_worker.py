"""gunicorn's gevent worker with client sockets of our own."""

from typing import Any

from gunicorn.workers.ggevent import GeventWorker

from app.client_socket import ClientSocket


class WebWorker(GeventWorker):  # type: ignore[misc]
    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        settings = self.wsgi.extensions["llmis"].settings
        super().handle(listener, ClientSocket(client, settings.write_timeout_s), addr)
