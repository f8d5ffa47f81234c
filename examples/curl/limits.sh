#!/usr/bin/env bash
# The headers of an answer: the request's id, the key's limits and the remaining quota, and, with a
# 429, when to retry.
set -euo pipefail

curl -sS -o /dev/null -D - "${LLMIS_URL:-http://127.0.0.1:8000}/v1/completions" \
  -H "Authorization: Bearer ${OPENAI_API_KEY:-none}" \
  -H 'Content-Type: application/json' \
  -d "{\"model\": \"${MODEL:-gemma-3-270m}\", \"prompt\": \"1 2 3\", \"max_tokens\": 5}" |
  grep -iE '^(HTTP/|x-request-id|x-ratelimit-|x-llmis-|retry-after)'
