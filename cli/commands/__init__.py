"""The commands of `llmis`, one per module.

They use the service through HTTP, and Redis for API keys and health. They never import app or
worker."""
