"""Questions about ExLlamaV2 that only a GPU can answer: `python -m tools.gpu.questions`."""
