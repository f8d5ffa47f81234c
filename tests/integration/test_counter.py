"""The counter model through the whole stack: nothing lost, doubled or swapped."""

import time
from concurrent.futures import ThreadPoolExecutor

import openai

from tests.conftest import Service
from tests.support.counter_model import expected_text


def _stream_text(client: openai.OpenAI, start: int, num_tokens: int) -> str:
    chunks = client.completions.create(
        model="counter",
        prompt=str(start),
        max_tokens=num_tokens,
        temperature=0,
        stream=True,
        timeout=120,
    )
    return "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)


def test_64_concurrent_streams_are_exact(service: Service) -> None:
    client = service.openai()
    starts = [7 * i for i in range(64)]
    with ThreadPoolExecutor(64) as pool:
        texts = list(pool.map(lambda start: _stream_text(client, start, 150), starts))
    assert texts == [expected_text(start, 150) for start in starts]


def test_killing_every_pubsub_connection_is_invisible(service: Service) -> None:
    client = service.openai()
    starts = [11 * i for i in range(16)]
    with ThreadPoolExecutor(17) as pool:
        texts = pool.map(lambda start: _stream_text(client, start, 600), starts)
        kills = 0
        for _ in range(10):
            time.sleep(0.05)
            kills += service.redis.client_kill_filter(_type="pubsub")
        results = list(texts)
    assert kills > 0
    assert results == [expected_text(start, 600) for start in starts]
