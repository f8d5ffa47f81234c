"""The settings: their fields, and how `llmis.toml` and the environment are read and checked.

It opens no connection."""
