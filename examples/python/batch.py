"""A batch of low priority: its requests have the priority `batch`, so interactive requests overtake
the waiting ones.

Run it again with the same name after a crash: requests that were sent already are not computed
again, as long as the service keeps their answers (`job_ttl_s`).

    python batch.py NAME NUM_REQUESTS
"""

import asyncio
import os
import sys

from openai import AsyncOpenAI

MODEL = os.environ.get("MODEL", "gemma-3-270m")
AT_ONCE = 48

client = AsyncOpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
    max_retries=20,
)


async def main(name: str, num_requests: int) -> None:
    room = asyncio.Semaphore(AT_ONCE)
    first_is_there = asyncio.Event()
    num_done = 0

    async def work(number: int) -> str:
        nonlocal num_done
        async with room:
            answer = await client.completions.create(
                model=MODEL,
                prompt=f"Count on: {number}",
                max_tokens=200,
                temperature=0,
                extra_body={"priority": "batch", "ignore_eos": True},
                extra_headers={"Idempotency-Key": f"{name}-{number}"},
            )
        num_done += 1
        first_is_there.set()
        return answer.choices[0].text

    async def somebody_asks() -> None:
        await first_is_there.wait()
        answer = await client.completions.create(
            model=MODEL, prompt="Count on: 17", max_tokens=3, temperature=0
        )
        print(f"answered after {num_done} of {num_requests} of the batch:{answer.choices[0].text}")

    *texts, _ = await asyncio.gather(*(work(n) for n in range(num_requests)), somebody_asks())
    for number, text in enumerate(texts):
        print(f"{number}:{text}")


if len(sys.argv) != 3 or not sys.argv[2].isdecimal():
    print("usage: python batch.py NAME NUM_REQUESTS", file=sys.stderr)
    sys.exit(2)
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
