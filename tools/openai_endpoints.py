"""OpenAI's groups of endpoints, by attribute of its client, and which of them are served here."""

_MEDIA = "the models served here read and write text"
_HOSTED = "a service of OpenAI's platform, not of a model"
_FILES = "nothing is kept here but running requests"

GROUPS: dict[str, tuple[tuple[str, ...], str]] = {
    "admin": ((), "OpenAI's own organisations and keys; `/admin` here is another API"),
    "audio": ((), _MEDIA),
    "batches": ((), _FILES),
    "beta": ((), "assistants and threads keep their state at OpenAI"),
    "chat": (("/v1/chat/completions",), ""),
    "completions": (("/v1/completions",), ""),
    "containers": ((), _HOSTED),
    "content_provenance_checks": ((), _HOSTED),
    "conversations": ((), "the client sends the conversation with every request"),
    "decisions": ((), _HOSTED),
    "embeddings": (("/v1/embeddings",), "not served yet"),
    "evals": ((), _HOSTED),
    "files": ((), _FILES),
    "fine_tuning": ((), "models are trained elsewhere"),
    "images": ((), _MEDIA),
    "live": ((), _MEDIA),
    "models": (("/v1/models", "/v1/models/{name}"), ""),
    "moderations": ((), "no model for it is served"),
    "realtime": ((), _MEDIA),
    "responses": ((), "chat completions do the same without keeping state"),
    "safety": ((), _HOSTED),
    "skills": ((), _HOSTED),
    "uploads": ((), _FILES),
    "vector_stores": ((), _FILES),
    "videos": ((), _MEDIA),
    "webhooks": ((), _HOSTED),
}
"""Group → its endpoints here, or why there are none."""
