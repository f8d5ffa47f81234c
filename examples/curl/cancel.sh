#!/usr/bin/env bash
# A long answer, cancelled by its id over another connection. The reader itself can close its
# connection instead.
set -euo pipefail

llmis() {
  curl -sSN "${LLMIS_URL:-http://127.0.0.1:8000}$1" "${@:2}" \
    -H "Authorization: Bearer ${OPENAI_API_KEY:-none}" -H 'Content-Type: application/json'
}

id="cancel-$$-$RANDOM"
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT

llmis /v1/completions --fail-with-body -H "x-request-id: $id" -o "$answer" -d @- <<BODY &
{
  "model": "${MODEL:-gemma-3-270m}",
  "prompt": "1 2 3",
  "max_tokens": 2000,
  "ignore_eos": true,
  "stream": true
}
BODY
reader=$!
until grep -q '^data: ' "$answer" || ! kill -0 "$reader" 2>/dev/null; do sleep 0.1; done

echo "cancel:"
llmis "/v1/requests/$id/cancel" --fail-with-body -X POST
echo
wait "$reader"
echo "the end of the stream:"
tail -n 2 "$answer"
echo "the request:"
llmis "/v1/requests/$id"
echo
