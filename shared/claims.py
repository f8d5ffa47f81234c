"""Who runs a job: one replica at a time, and how often it went wrong before.

The claim is a key of the job. It fences: events are appended to the job's log only by the
attempt that the claim names, so a replica that was taken for dead and wakes up again cannot
write into the log of its heir.
"""

from typing import Any

import msgspec
import redis
from msgspec import Struct

from shared import essential, names
from shared.connections import payload_bytes

_encode = msgspec.json.Encoder().encode
_TAKE_OVER = (
    essential.FLAGS
    + """
local found = redis.call('get', KEYS[1])
if found == ARGV[2] then return 1 end
if found ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""
)
"""Replace a claim if it is still the one that was seen. The new one may be there already, from a
call whose answer was lost."""


class Claim(Struct, frozen=True):
    holder: str
    """Id of the replica that runs the job; "" when it has given it back."""
    attempt: int = 0
    num_events: int = 0
    num_tokens: int = 0
    """Events and tokens in the job's log when the attempt began."""
    num_barren: int = 0
    """Attempts since the last token that have died with the job in the engine."""

    def encode(self) -> bytes:
        return _encode(self)

    def succeeded_by(self, holder: str, num_events: int, num_tokens: int) -> "Claim":
        """The claim of the attempt that comes after this one, with what is in the log now."""
        barren = 0
        if num_tokens == self.num_tokens:
            # A job that was only waiting in the replica has nothing to do with its death.
            is_suspect = bool(self.holder) and num_events > self.num_events
            barren = self.num_barren + is_suspect
        return Claim(holder, self.attempt + 1, num_events, num_tokens, barren)


def give_back(client: "redis.Redis", job_id: str, claim: bytes, ttl_s: int) -> None:
    """Let another replica have the job, if the claim is still this one. Its log must be
    complete by now."""
    old = msgspec.json.decode(claim, type=Claim)
    new = msgspec.structs.replace(old, holder="")
    client.eval(_TAKE_OVER, 1, names.claim_key(job_id), claim, new.encode(), str(ttl_s))


def read(client: "redis.Redis", job_id: str) -> Claim | None:
    """Raises redis.RedisError, msgspec.DecodeError."""
    return decode(client.get(names.claim_key(job_id)))


def decode(payload: Any) -> Claim | None:
    return msgspec.json.decode(payload_bytes(payload), type=Claim) if payload else None


def take(client: "redis.Redis", job_id: str, claim: Claim, ttl_s: int) -> bool:
    """Claim a job that nobody has claimed yet; False when somebody has."""
    key = names.claim_key(job_id)
    return bool(essential.write(client, "SET", key, claim.encode(), "NX", "EX", ttl_s))


def take_over(client: "redis.Redis", job_id: str, old: Claim, new: Claim, ttl_s: int) -> bool:
    """Put a new claim into the place of the one that was seen; False when it has changed."""
    key = names.claim_key(job_id)
    return bool(client.eval(_TAKE_OVER, 1, key, old.encode(), new.encode(), str(ttl_s)))


def flag_cancelled(client: "redis.Redis", job_id: str, ttl_s: int) -> None:
    """Leave word that a job is not wanted any more, for a replica that misses the revocation."""
    essential.write(client, "SET", names.cancel_key(job_id), 1, "EX", ttl_s)
