"""The llmis command."""
