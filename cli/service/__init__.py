"""`llmis up`: the processes of the service, started, watched and stopped.

It never serves a request."""
