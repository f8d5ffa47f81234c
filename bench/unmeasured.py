"""The web application without its metrics: what `bench.metrics_cost` compares with."""

from app import factory
from app.api import metrics
from app.metrics import buffered
from app.metrics.request_record import RequestRecord
from app.middleware import request_log
from app.streaming import relay


def _new_record(route: str, **_: bool) -> RequestRecord:
    return RequestRecord(route)


request_log.new_record = _new_record
relay.Relay.delivered = lambda self: None  # type: ignore[method-assign]
buffered.flush = lambda client: None
metrics.register = lambda app: None

app = factory.create_app()
