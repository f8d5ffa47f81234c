"""Side-by-side benchmarks against llama.cpp's own server, and the relay alone: `make bench`."""
