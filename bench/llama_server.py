"""llama.cpp's own HTTP server in a process of its own, from the wheel that llmis uses, too.

python -m bench.llama_server MODEL.gguf PORT SLOTS CONTEXT_TOKENS
"""

import signal
import sys

import xllamacpp


def main(path: str, port: int, slots: int, context_length: int) -> None:
    """Serve until SIGTERM. `context_length` is in tokens per slot; all else is its default."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = slots * context_length
    params.n_parallel = slots
    params.hostnames = ["127.0.0.1"]
    params.port = port
    # One compute thread, as llmis gets; one HTTP thread for every stream, since each holds one.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_threads_http = slots + 4
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], *(int(argument) for argument in sys.argv[2:]))
