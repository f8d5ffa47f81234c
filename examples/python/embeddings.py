"""Which text is nearest to a query? Needs an embedding model.

python embeddings.py "a small animal" "The cat sleeps." "Shares fell." "It rained all day."
"""

import os
import sys

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)


def embedding_model() -> str:
    for model in client.models.list():
        if "embedding" in (model.capabilities or []):
            return model.id
    sys.exit("No model here embeds; see docs/models.md, or name one in MODEL.")


query, *texts = sys.argv[1:] or ["a small animal", "The cat sleeps.", "Shares fell."]
answer = client.embeddings.create(
    model=os.environ.get("MODEL") or embedding_model(), input=[query, *texts]
)
wanted, *vectors = (item.embedding for item in answer.data)

# All vectors have length 1, so the product is the cosine.
nearness = [sum(a * b for a, b in zip(wanted, vector, strict=True)) for vector in vectors]
for value, text in sorted(zip(nearness, texts, strict=True), reverse=True):
    print(f"{value:.3f} {text}")
