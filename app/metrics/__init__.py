"""What the web tier counts, and its text at `/metrics`. It never makes a request wait."""

MASTER_ID_VARIABLE = "LLMIS_WEB_MASTER_ID"
"""Environment variable with the id by which the web processes of a gunicorn master add up their
counters. Every start of a master makes another id, so that the counters begin at 0."""
