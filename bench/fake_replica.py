"""A replica without an engine: publishes a script as fast as it is told to.

Takes the jobs of a model from its queue as kombu left them there, and answers each with the
counter model's text: one token a Delta, one Delta a job and step, up to 64 jobs in one hub
message, all encoded before the first is sent. The job logs are written before that: who loses
an event finds it there.

    REDIS_URL=... python -m bench.fake_replica SCRIPT.json RESULT.json
"""

import os
import sys
import time
from pathlib import Path

import msgspec
import redis
from msgspec import Struct

from bench.processes import cpu_seconds
from shared import names
from shared.queue.lease import Lease
from shared.wire import codec
from shared.wire.events import Delta, Finished, FinishReason, Started, Timings, Usage
from shared.wire.job import Job
from tests.support.counter_model import NUMBERS

REPLICA_ID = "relay@bench"
"""The registry has a record of it, so that the relays trust its claims."""
JOBS_PER_MESSAGE = 64
_JOB_LIMIT_S = 60


class Script(Struct, kw_only=True):
    model: str
    num_jobs: int
    num_tokens: int
    """Of each job."""
    tokens_per_s: float
    """Of all jobs together."""
    web_pid: int
    """The root of the web tier's process tree, whose CPU time is read at the start."""


class Published(Struct, kw_only=True):
    message_at: list[float]
    """CLOCK_MONOTONIC seconds at which each message with tokens was sent."""
    web_cpu_s: float
    """CPU seconds of the web tier up to the first of them."""


def main(script_path: str, result_path: str) -> None:
    script = msgspec.json.decode(Path(script_path).read_bytes(), type=Script)
    client = redis.Redis.from_url(os.environ["REDIS_URL"], protocol=2)
    jobs = sorted(_take_jobs(client, script), key=_start)
    events = {job.id: _events(job, script.num_tokens) for job in jobs}
    _write_logs(client, events)
    payloads, endings = _encode(events, script.num_tokens)
    (channel,) = client.smembers(names.readers_key(jobs[0].id))
    published = _publish(client, channel.decode(), payloads, script)
    for payload in endings:
        client.publish(channel.decode(), payload)
    Path(result_path).write_bytes(msgspec.json.encode(published))


def _take_jobs(client: "redis.Redis", script: Script) -> list[Job]:
    """Wait for all jobs; each is started as soon as it comes."""
    jobs: list[Job] = []
    while len(jobs) < script.num_jobs:
        item = client.blpop(names.priority_lists(script.model), _JOB_LIMIT_S)
        if item is None:
            raise RuntimeError(f"{len(jobs)} of {script.num_jobs} jobs after {_JOB_LIMIT_S} s")
        job_id = msgspec.json.decode(item[1])["headers"]["id"]
        payload = client.get(names.job_key(job_id))
        assert isinstance(payload, bytes), "the web tier writes the job before it enqueues it"
        client.set(names.lease_key(job_id), Lease(REPLICA_ID).encode(), ex=_JOB_LIMIT_S)
        jobs.append(codec.decode_job(payload))
    return jobs


def _events(job: Job, num_tokens: int) -> list[bytes]:
    """The whole answer: its start, its tokens, its end."""
    tokens = [_delta(job, k, num_tokens) for k in range(num_tokens)]
    finished = Finished(num_tokens + 1, 0, Usage(1, num_tokens), Timings(0.0, 0.0, 0.0))
    started = codec.encode_event(Started(0, 0, 1))
    return [started, *tokens, codec.encode_event(finished)]


def _write_logs(client: "redis.Redis", events: dict[str, list[bytes]]) -> None:
    for job_id, payloads in events.items():
        client.rpush(names.log_key(job_id), *payloads)
        client.expire(names.log_key(job_id), _JOB_LIMIT_S)


def _start(job: Job) -> int:
    """The prompt is the number to count from."""
    return int(str(job.prompts[0]))


def _encode(events: dict[str, list[bytes]], num_tokens: int) -> tuple[list[bytes], list[bytes]]:
    """The hub messages with tokens, step by step and in each step group by group, the starts in
    the first ones; those with the endings."""
    ids = list(events)
    groups = [ids[i : i + JOBS_PER_MESSAGE] for i in range(0, len(ids), JOBS_PER_MESSAGE)]

    def message(group: list[str], steps: slice) -> bytes:
        return codec.encode_hub_message(
            [(job_id, event) for job_id in group for event in events[job_id][steps]], time.time()
        )

    payloads = [
        message(group, slice(k + 1 if k else 0, k + 2))
        for k in range(num_tokens)
        for group in groups
    ]
    return payloads, [message(group, slice(-1, None)) for group in groups]


def _delta(job: Job, k: int, num_tokens: int) -> bytes:
    """Token k. Its sequence number is k + 1, since Started has 0."""
    number = (_start(job) + 1 + k) % NUMBERS
    reason = FinishReason.LENGTH if k == num_tokens - 1 else None
    return codec.encode_event(Delta(k + 1, 0, 0, f" {number}", [number], reason))


def _publish(
    client: "redis.Redis", channel: str, payloads: list[bytes], script: Script
) -> Published:
    """Send the messages evenly spread over the time that the rate gives."""
    duration_s = script.num_jobs * script.num_tokens / script.tokens_per_s
    interval_s = duration_s / len(payloads)
    published = Published(message_at=[], web_cpu_s=sum(cpu_seconds(script.web_pid).values()))
    started = time.monotonic()
    for i, payload in enumerate(payloads):
        while (now := time.monotonic()) < started + i * interval_s:
            time.sleep(started + i * interval_s - now)
        published.message_at.append(now)
        client.publish(channel, payload)
    return published


if __name__ == "__main__":
    main(*sys.argv[1:])
