"""Which routes are open, and which scope the others need. Pure: a table by route."""

from shared.api_keys import Scope

WEBSOCKET = "/v1/ws"
LIVENESS = ("/healthz", "/health", "/ping", "/v1/health")
"""Of Kubernetes; of vLLM, SGLang and TabbyAPI; of SageMaker and vLLM; of llama-server."""
PROBES = (*LIVENESS, "/readyz")
"""Routes that load balancers and monitoring ask, and whose answers reveal nothing."""
_OPEN_ROUTES = frozenset(
    {
        "/",
        "/static/<path:filename>",
        *PROBES,
        "/version",
        "/docs",
        "/docs/<any('swagger-ui.css', 'swagger-ui-bundle.js'):name>",
        "/openapi.json",
    }
)


def scope_of(rule: str) -> Scope | None:
    """The scope that a route needs, by its URL rule; None = it is open. A route that is not named
    here needs a key."""
    if rule in _OPEN_ROUTES:
        return None
    if rule == "/metrics":
        return Scope.METRICS
    return Scope.ADMIN if rule.startswith("/admin/") else Scope.USER
