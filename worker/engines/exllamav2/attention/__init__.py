"""Paged attention where flash-attn is missing: kernels and how they are put in its place. It owns
no cache."""
