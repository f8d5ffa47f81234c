#!/usr/bin/env bash
# The models, their capabilities, and whether they are loaded.
set -euo pipefail

curl -sS --fail-with-body "${LLMIS_URL:-http://127.0.0.1:8000}/v1/models" \
  -H "Authorization: Bearer ${OPENAI_API_KEY:-none}"
