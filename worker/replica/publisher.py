"""The publisher: one thread that carries the engine loop's results to Redis.

Every event is appended to its job's log and then published on the channels of the web processes
that read the job; all events of a round travel together. What arrives
while a round is under way waits for the next one, where the text of a choice is joined: a
publisher that falls behind sends fewer, larger events. Delivery: the log has every event
exactly once, at the index that is its sequence number; pub/sub is at most once.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable

import redis

from shared import essential, messages, names
from shared.messages import Event, Failed, Finished, Job, JobKind
from shared.registry import BEAT_S
from worker.backlog import Backlog
from worker.events import events_of
from worker.job_run import Emission, JobDropped, JobEnded, JobGivenBack, JobRun
from worker.thread_names import name_this_thread

_log = logging.getLogger(__name__)
_MAX_ROUND = 512
"""Emissions in one round trip."""
_LARGE_LOG_TTL_S = 60
"""How long a log with vectors or a prompt's log probabilities stays: it is read at once."""
_APPEND = (
    essential.FLAGS
    + """
local n, counts, refused, blocked = tonumber(ARGV[1]), {}, {}, {}
for i = 1, n do
  local claim, log, at = KEYS[2 * i - 1], KEYS[2 * i], 5 * i - 3
  local holder = redis.call('get', claim)
  if holder ~= false and holder ~= ARGV[at] then
    refused[#refused + 1] = i
    for place in string.gmatch(ARGV[at + 4], '%d+') do blocked[tonumber(place)] = true end
  elseif redis.call('llen', log) <= tonumber(ARGV[at + 1]) then
    redis.call('rpush', log, ARGV[at + 2])
    if ARGV[at + 3] ~= '0' then redis.call('expire', log, ARGV[at + 3]) end
  end
end
for c = 1, #KEYS - 2 * n do
  if blocked[c] then counts[c] = 1
  else counts[c] = redis.call('publish', KEYS[2 * n + c], ARGV[1 + 5 * n + c]) end
end
return {counts, refused}
"""
)
"""KEYS: claim and log of each event, then the channels. ARGV: the number of events; of each one
the claim that it needs, its sequence number, the event, the log's new time to live (0 = none),
and the numbers of its channels; then a message for each channel. An event that is in its log
already, from a call whose answer was lost, is not appended again. A channel with a refused event
gets no message: its readers repair from the logs. A claim that is not there is no other's.
Returns the receivers of each channel, and the numbers of the refused events."""


class Publisher:
    def __init__(self, client: "redis.Redis", job_ttl_s: int, request_timeout_s: float) -> None:
        self._client = client
        self._job_ttl_s = job_ttl_s
        self._running_ttl_s = int(request_timeout_s) + job_ttl_s
        self._queue = Backlog()
        self._append = client.register_script(_APPEND)
        self.on_fenced: Callable[[str], None] = lambda job_id: None
        """Called with the id of a job that another replica has taken over."""
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self.is_wedged = False
        """The thread died: the process is of no more use."""
        self._is_busy = False
        self._waiting_since = self._tried_at = 0.0
        """Monotonic times: emissions came to an idle thread; an attempt to send them ended."""
        self._unheard_since: dict[str, float] = {}
        """Channel → monotonic time since when its messages reached nobody."""

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Publish what is queued, then end the thread; give up after `timeout_s`."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def emit(self, emissions: list[Emission]) -> None:
        """Take emissions from any thread; never blocks."""
        if not self._is_busy and self._queue.empty():
            self._waiting_since = time.monotonic()
        self._queue.put(emissions)

    @property
    def age_s(self) -> float:
        """Seconds for which there was something to publish and no attempt at it ended, neither
        well nor badly: Redis may be away for long, the thread may not."""
        if not self._is_busy and self._queue.empty():
            return 0.0
        return time.monotonic() - max(self._waiting_since, self._tried_at)

    def unheard_channels(self, grace_s: float) -> set[str]:
        """Channels whose messages have reached nobody for longer than `grace_s`."""
        limit = time.monotonic() - grace_s
        return {channel for channel, since in self._unheard_since.copy().items() if since < limit}

    def forget_channels(self, channels: set[str]) -> None:
        """Begin anew with channels that are heard after all, or that no job uses any more."""
        for channel in channels:
            self._unheard_since.pop(channel, None)

    # -- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        name_this_thread()
        try:
            while self._publish_round():
                pass
        except Exception:
            _log.exception("publisher died")
            self.is_wedged = True

    def _publish_round(self) -> bool:
        """Publish what has come; False when that was the last."""
        emissions, is_last = self._collect()
        self._is_busy, self._tried_at = True, time.monotonic()
        if emissions:
            events = events_of(emissions)
            if events:
                self.send(events)
            for run, item in emissions:
                if isinstance(item, JobEnded | JobDropped | JobGivenBack):
                    run.done.set()
        self._is_busy = False
        return not is_last

    def _collect(self) -> tuple[list[Emission], bool]:
        """Wait for emissions, then take all that is there, up to one round."""
        first = self._queue.get()
        if first is None:
            return [], True
        emissions = list(first)
        while len(emissions) < _MAX_ROUND:
            try:
                more = self._queue.get_nowait()
            except queue.Empty:
                break
            if more is None:
                return emissions, True
            emissions.extend(more)
        return emissions, False

    def send(self, events: list[tuple[JobRun, Event]]) -> None:
        """Write the events until Redis has them all. After a broken round trip nobody knows
        whether it had: it is simply sent again."""
        encoded = [(run, event, messages.encode_event(event)) for run, event in events]
        while True:
            try:
                self._round_trip(encoded)
                self._tried_at = time.monotonic()
                return
            except redis.RedisError as exc:
                _log.warning("publishing %d events failed, trying again: %s", len(encoded), exc)
                self._tried_at = time.monotonic()
                time.sleep(BEAT_S / 4)

    def _round_trip(self, encoded: list[tuple[JobRun, Event, bytes]]) -> None:
        """Append and publish in one call. Events of a job that another replica has taken over
        go nowhere."""
        by_channel: dict[str, list[tuple[str, bytes]]] = {}
        places: dict[str, int] = {}
        keys: list[str] = []
        entries: list[bytes | int | str] = []
        for run, event, payload in encoded:
            readers = run.channels  # the heartbeat replaces it
            for channel in readers:
                by_channel.setdefault(channel, []).append((run.id, payload))
                places.setdefault(channel, len(places) + 1)
            place = " ".join(str(places[channel]) for channel in readers)
            keys += (names.claim_key(run.id), names.log_key(run.id))
            entries += (run.claim, event.seq, payload, self._expiry_s(run, event), place)
        channels = list(by_channel)
        now = time.time()
        hub_messages = [
            messages.encode_hub_message(by_channel[channel], now) for channel in channels
        ]
        counts, refused = self._append(
            keys=[*keys, *channels], args=[len(encoded), *entries, *hub_messages]
        )
        for position in refused:
            self._fence(encoded[position - 1][0])
        heard_at = time.monotonic()
        for channel, receivers in zip(channels, counts, strict=True):
            if receivers:
                self._unheard_since.pop(channel, None)
            else:
                self._unheard_since.setdefault(channel, heard_at)

    def _fence(self, run: JobRun) -> None:
        if not run.is_fenced:
            _log.warning("another replica has taken the job over", extra={"request_id": run.id})
            run.is_fenced = True
            run.outcome = "taken_over"
            run.done.set()
            self.on_fenced(run.id)

    def _expiry_s(self, run: JobRun, event: Event) -> int:
        """Seconds that the log stays from now on; 0 = as it is."""
        if isinstance(event, Finished | Failed):
            return self._ttl_s(run.job)
        return self._running_ttl_s if event.seq == 0 or run.attempt else 0

    def _ttl_s(self, job: Job) -> int:
        is_large = job.kind is JobKind.EMBEDDING or job.prompt_logprobs
        return min(_LARGE_LOG_TTL_S, self._job_ttl_s) if is_large else self._job_ttl_s
