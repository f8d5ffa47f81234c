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
from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Struct

from bench import sse
from bench.processes import busy_seconds, cpu_seconds
from bench.sse import Answer, Stream

LIMIT_S = 180.0
"""A load that takes longer has met a server that hangs."""
STALLED = 75
"""Exit status then."""
LATE_AFTER = 16
"""Pieces of each stream before the late request: as many gaps, nearly, of undisturbed streams."""


class Plan(Struct, kw_only=True):
    """What to send: each stream sends its bodies one after the other, all streams at once."""

    port: int
    server_pid: int
    """The root of the server's process tree, whose CPU time is read."""
    streams: list[list[msgspec.Raw]]
    """JSON bodies by stream."""
    pause_s: float = 0.0
    """Idle time before each request, for measurements of an idle service; needs one stream."""
    in_bursts: bool = False
    """All streams send at the same moment, and again when all of them have ended."""
    late: list[msgspec.Raw] = []
    """None, or one body that is sent when `LATE_AFTER` pieces of every stream have come; at its
    end the streams are cut off."""
    limit_s: float = LIMIT_S
    """Time for all streams together."""


class LoadResult(Struct, kw_only=True):
    streams: list[Stream]
    """In the order of the plan: all of the first stream, then the second's, and so on."""
    late: Stream | None = None
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
    late = Answer(_http_request(plan, plan.late[0])) if plan.late else None
    server_cpu_before = cpu_seconds(plan.server_pid)
    load_cpu_before_s, machine_cpu_before_s = time.process_time(), busy_seconds()
    connections = _Connections(plan)
    if late is not None:
        _drive_with_late(connections, [of_stream[0] for of_stream in answers], late)
    elif plan.in_bursts:
        _drive_bursts(connections, answers)
    else:
        _drive(connections, answers, plan.pause_s)
    load_cpu_s = time.process_time() - load_cpu_before_s
    machine_cpu_s = busy_seconds() - machine_cpu_before_s
    server_cpu_after = cpu_seconds(plan.server_pid)
    return LoadResult(
        streams=[sse.parse(answer) for of_stream in answers for answer in of_stream],
        late=sse.parse(late) if late is not None else None,
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


def _drive(connections: "_Connections", answers: list[list[Answer]], pause_s: float) -> None:
    """Run all streams to their ends, each with its requests one after the other."""
    rest_of: dict[int, Iterator[Answer]] = {}

    def send_next(rest: Iterator[Answer]) -> None:
        if (answer := next(rest, None)) is not None:
            time.sleep(pause_s)
            rest_of[id(answer)] = rest
            connections.send([answer])

    for of_stream in answers:
        send_next(iter(of_stream))
    while connections.num_open:
        for answer in connections.read():
            send_next(rest_of[id(answer)])


def _drive_bursts(connections: "_Connections", answers: list[list[Answer]]) -> None:
    """A burst is one request of every stream."""
    for burst in zip(*answers, strict=True):
        connections.send(burst)
        while connections.num_open:
            connections.read()


def _drive_with_late(connections: "_Connections", streams: list[Answer], late: Answer) -> None:
    connections.send(streams)
    while any(not s.ended_at and len(s.received) < LATE_AFTER for s in streams):
        connections.read()
    connections.send([late])
    while not late.ended_at:
        connections.read()
    connections.cut()


class _Connections:
    """Open connections, each with the answer that comes in on it."""

    def __init__(self, plan: Plan) -> None:
        self._port = plan.port
        self._limit_s = plan.limit_s
        self._deadline = time.monotonic() + plan.limit_s
        self._poll = select.epoll()
        self._live: dict[int, tuple[socket.socket, Answer]] = {}

    @property
    def num_open(self) -> int:
        return len(self._live)

    def send(self, answers: Sequence[Answer]) -> None:
        """Open all connections, then send all requests."""
        left_s = max(0.001, self._deadline - time.monotonic())
        address = ("127.0.0.1", self._port)
        opened = [(socket.create_connection(address, timeout=left_s), a) for a in answers]
        for sock, answer in opened:
            answer.sent_at = time.monotonic()
            sock.sendall(answer.request)
            sock.settimeout(None)  # epoll waits from here on; a time limit costs a call per read
            self._live[sock.fileno()] = sock, answer
            self._poll.register(sock, select.EPOLLIN)

    def read(self) -> list[Answer]:
        """Wait for pieces and take them. Returns the answers that have ended: the end of an answer
        is the end of its connection. Raises TimeoutError."""
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"{self.num_open} streams have not ended after {self._limit_s:g} s")
        ended = []
        for descriptor, _ in self._poll.poll(min(left_s, 1.0)):
            sock, answer = self._live[descriptor]
            data = sock.recv(16384)
            if data:
                answer.received.append((time.monotonic(), data))
                continue
            answer.ended_at = time.monotonic()
            del self._live[descriptor]
            sock.close()  # which leaves the epoll set, too
            ended.append(answer)
        return ended

    def cut(self) -> None:
        """Close what is still open: the server sees clients that leave."""
        for sock, answer in self._live.values():
            answer.is_cut, answer.ended_at = True, time.monotonic()
            sock.close()
        self._live.clear()


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
