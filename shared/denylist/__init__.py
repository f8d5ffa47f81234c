"""The denylist: its file, its rules and their matches in texts.

It never sees which request or key a text belongs to."""
