"""Which models exist, and how an absent one is loaded. It never answers a client."""
