"""ExLlamaV2 on the GPU: the engine's parts, among them the project's own paged attention.

Nothing here is imported before a replica loads such a model: torch, triton and exllamav2 are
large, and absent on hosts without a GPU.
"""
