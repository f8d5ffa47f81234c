"""The command `llmis`. It uses the service over HTTP and Redis and never imports app or worker."""
