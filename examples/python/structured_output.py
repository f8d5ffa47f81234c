"""An answer as a typed object. A grammar made from the JSON schema constrains the model, so even a
small model gives the right shape; the values may still be wrong.

    python structured_output.py "It is 3 degrees in Oslo, and it rains."
"""

import os
import sys
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel, Field


class Weather(BaseModel):
    city: str = Field(max_length=30)
    celsius: int = Field(ge=-50, le=60)
    sky: Literal["clear", "clouds", "rain", "snow"]


client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
report = " ".join(sys.argv[1:]) or "It is 3 degrees in Oslo, and it rains."
answer = client.chat.completions.parse(
    model=os.environ.get("MODEL", "gemma-3-270m"),
    messages=[
        {"role": "system", "content": "Put the weather report into JSON."},
        {"role": "user", "content": report},
    ],
    response_format=Weather,
    max_tokens=200,
    temperature=0,
)
weather = answer.choices[0].message.parsed
print(f"{weather.city}: {weather.celsius} °C, {weather.sky}")
