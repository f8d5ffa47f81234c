"""The replica: one process, one loaded model, one engine loop thread."""
