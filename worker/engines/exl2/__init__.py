"""The parts of the ExLlamaV2 engine. Imported by `worker.engines.exllamav2` alone."""
