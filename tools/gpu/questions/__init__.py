"""Questions to a GPU that nobody could answer without one; `python -m tools.gpu.questions`."""
