"""Many requests at the same time. The client retries those that the key's limits reject (429),
after the time in `Retry-After`.

    python many.py 64
"""

import asyncio
import os
import sys

from openai import AsyncOpenAI

MODEL = os.environ.get("MODEL", "gemma-3-270m")


async def main(num_requests: int) -> None:
    async with AsyncOpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
        max_retries=20,
    ) as client:

        async def ask(number: int) -> tuple[str, int]:
            response = await client.completions.with_raw_response.create(
                model=MODEL, prompt=f"Count on: {number}", max_tokens=5, temperature=0
            )
            return response.parse().choices[0].text, response.retries_taken

        answers = await asyncio.gather(*(ask(number) for number in range(num_requests)))
    for number, (text, retries) in enumerate(answers):
        print(f"{number}:{text}", f"(after {retries} refusals)" if retries else "")
    print(f"{len(answers)} answers, {sum(retries for _, retries in answers)} refusals on the way")


asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 16))
