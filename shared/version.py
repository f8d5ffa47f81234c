"""The version of llmis."""

VERSION = "0.1.0"
