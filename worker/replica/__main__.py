"""`python -m worker.replica ASSIGNMENT REPLICA` loads a model and serves it. An agent starts it.
The assignment, which lies in Redis, says what to load; the replica id is this process's own."""

import gc
import os
import sys

if __name__ == "__main__":
    # The imports make objects that stay. To look for garbage among them is a tenth of their time.
    gc.disable()

import redis

from shared import logs, names
from shared.clock import clock
from shared.errors import LlmisError, SettingsError
from shared.redis.connection import connect
from shared.settings.load import load
from shared.wire import codec
from shared.wire.records import Assignment
from worker.replica.process import ReplicaProcess


def main(arguments: list[str]) -> int:
    gc.freeze()  # no later collection looks at what the imports have made
    gc.enable()
    if len(arguments) != 2:
        print("usage: python -m worker.replica ASSIGNMENT REPLICA", file=sys.stderr)
        return 2
    assignment_id, replica_id = arguments
    try:
        settings = load()
        logs.configure("replica", settings.log_level, with_prompts=settings.log_prompts)
        client = connect(settings, max_connections=1)
        clock.measure(client)
        payload = client.hget(names.assignments_key(settings.node), assignment_id)
        assignment = codec.decode(payload, Assignment)
        if assignment is None:
            raise SettingsError(f"there is no assignment {assignment_id!r}; the agent makes them")
        # A task thread that waits for its turn must not hold the GIL away from the engine loop.
        sys.setswitchinterval(0.001)
        ReplicaProcess(settings, assignment, replica_id).run()
    except (SettingsError, LlmisError) as exc:
        print(f"llmis replica: {exc}", file=sys.stderr)
        return 1
    except redis.RedisError as exc:
        print(f"llmis replica: Redis does not answer at REDIS_URL: {exc}", file=sys.stderr)
        return os.EX_TEMPFAIL
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
