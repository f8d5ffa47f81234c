"""The engine on ExLlamaV2. It is never called by another thread than the engine loop."""
