"""The load generator: a process of its own that streams many completions at once.

It is as cheap as it can be, because it shares the machine with the server it measures: one
thread, epoll, and while a stream runs nothing but `recv` and a time stamp. HTTP and SSE are
parsed when all streams have ended. Reads a `Plan` on stdin, writes a `LoadResult` on stdout.

    python -m bench.load < plan.json > result.json
"""

import select
import socket
import sys
import time
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from bench import sse
from bench.processes import busy_seconds, cpu_seconds
from bench.sse import Answer, Stream

LIMIT_S = 180.0
"""A load that takes longer has met a server that hangs."""
STALLED = 75
"""Exit status then."""


class Plan(Struct, kw_only=True):
    """What to send: each stream sends its bodies one after the other, all streams at once."""

    port: int
    server_pid: int
    """The root of the server's process tree, whose CPU time is read."""
    streams: list[list[msgspec.Raw]]
    """JSON bodies by stream."""
    pause_s: float = 0.0
    """Idle time before each request, for measurements of an idle service; needs one stream."""
    limit_s: float = LIMIT_S
    """Time for all streams together."""


class LoadResult(Struct, kw_only=True):
    streams: list[Stream]
    """In the order of the plan: all of the first stream, then the second's, and so on."""
    server_cpu_before: dict[str, float]
    """CPU seconds of the server's processes by role, since they started."""
    server_cpu_after: dict[str, float]
    load_cpu_s: float
    """CPU seconds of the load generator while the streams ran."""
    machine_cpu_s: float
    """CPU seconds of everything on the machine meanwhile."""


def run(plan: Plan) -> LoadResult:
    """Send everything and return what came back. Raises RuntimeError when a request fails,
    TimeoutError when the server takes longer than the limit."""
    answers = [[Answer(_http_request(plan, body)) for body in bodies] for bodies in plan.streams]
    server_cpu_before = cpu_seconds(plan.server_pid)
    load_cpu_before_s, machine_cpu_before_s = time.process_time(), busy_seconds()
    _drive(plan, answers)
    load_cpu_s = time.process_time() - load_cpu_before_s
    machine_cpu_s = busy_seconds() - machine_cpu_before_s
    server_cpu_after = cpu_seconds(plan.server_pid)
    return LoadResult(
        streams=[sse.parse(answer) for of_stream in answers for answer in of_stream],
        server_cpu_before=server_cpu_before,
        server_cpu_after=server_cpu_after,
        load_cpu_s=load_cpu_s,
        machine_cpu_s=machine_cpu_s,
    )


def _http_request(plan: Plan, body: msgspec.Raw) -> bytes:
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{plan.port}\r\n"
        "Content-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(bytes(body))}\r\n\r\n"
    )
    return head.encode() + bytes(body)


def _drive(plan: Plan, answers: list[list[Answer]]) -> None:
    """Run all streams to their ends. The end of an answer is the end of its connection. Raises
    TimeoutError."""
    deadline = time.monotonic() + plan.limit_s
    poll = select.epoll()
    live: dict[int, tuple[socket.socket, Answer, Iterator[Answer]]] = {}

    def start_next(rest: Iterator[Answer]) -> None:
        answer = next(rest, None)
        if answer is None:
            return
        time.sleep(plan.pause_s)
        left_s = max(0.001, deadline - time.monotonic())
        sock = socket.create_connection(("127.0.0.1", plan.port), timeout=left_s)
        answer.sent_at = time.monotonic()
        sock.sendall(answer.request)
        sock.settimeout(None)  # epoll waits from here on; a time limit costs a call per read
        live[sock.fileno()] = sock, answer, rest
        poll.register(sock, select.EPOLLIN)

    for of_stream in answers:
        start_next(iter(of_stream))
    while live:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"{len(live)} streams have not ended after {plan.limit_s:g} s")
        for descriptor, _ in poll.poll(min(left_s, 1.0)):
            sock, answer, rest = live[descriptor]
            data = sock.recv(16384)
            if data:
                answer.received.append((time.monotonic(), data))
                continue
            answer.ended_at = time.monotonic()
            del live[descriptor]
            sock.close()  # which leaves the epoll set, too
            start_next(rest)


def main() -> None:
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    try:
        result = run(plan)
    except TimeoutError as exc:
        print(exc, file=sys.stderr)
        sys.exit(STALLED)
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
