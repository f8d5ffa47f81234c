"""The web application without its metrics: what `bench.metrics_cost` compares with."""

from app import factory, meters, metrics_page, relay, request_log
from app.request_facts import RequestFacts


def _new_facts(route: str, **_: bool) -> RequestFacts:
    return RequestFacts(route)


request_log.new_facts = _new_facts
relay.Relay.delivered = lambda self: None  # type: ignore[method-assign]
meters.flush = lambda: None
metrics_page.register = lambda app: None

app = factory.create_app()
