"""The bodies of requests and their validation. It never touches Redis and knows no Flask."""
