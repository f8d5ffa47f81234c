#!/usr/bin/env bash
# The same answer piece by piece, as server-sent events. -N: curl prints them as they arrive.
set -euo pipefail

curl -sSN --fail-with-body "${LLMIS_URL:-http://127.0.0.1:8000}/v1/chat/completions" \
  -H "Authorization: Bearer ${OPENAI_API_KEY:-none}" \
  -H 'Content-Type: application/json' \
  -d @- <<BODY
{
  "model": "${MODEL:-gemma-3-270m}",
  "messages": [{"role": "user", "content": "What is the capital of France?"}],
  "max_tokens": 100,
  "temperature": 0,
  "stream": true,
  "stream_options": {"include_usage": true}
}
BODY
