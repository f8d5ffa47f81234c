"""Every message between processes, with its encoding. An incompatible change needs a new VERSION.

It never talks to Redis."""
