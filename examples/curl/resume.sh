#!/usr/bin/env bash
# Resume: reads some events of a long answer, cuts the connection, and gets the rest with the id of
# the last event. No text is missing and none is sent twice; the script checks it.
set -euo pipefail

llmis() {
  curl -sSN --fail-with-body "${LLMIS_URL:-http://127.0.0.1:8000}$1" "${@:2}" \
    -H "Authorization: Bearer ${OPENAI_API_KEY:-none}" -H 'Content-Type: application/json'
}

# The texts of the events, joined; escapes stay as they are in JSON.
text() {
  sed -nE 's/^data: .*"text":"(([^"\\]|\\.)*)".*/\1/p' | tr -d '\n'
}

id="resume-$$-$RANDOM"
body=$(cat <<BODY
{
  "model": "${MODEL:-gemma-3-270m}",
  "prompt": "1 2 3",
  "max_tokens": 200,
  "temperature": 0,
  "ignore_eos": true,
  "stream": true
}
BODY
)

# awk reads five whole events and exits; that breaks the pipe, and with it curl's connection.
first=$(
  { llmis /v1/completions -H "x-request-id: $id" -d "$body" 2>/dev/null || true; } |
    awk 'BEGIN { RS = ""; ORS = "\n\n" } { print } NR == 5 { exit }'
)
last=$(sed -n 's/^id: //p' <<<"$first" | tail -n 1)
echo "cut off after the event $last: $(text <<<"$first")"

rest=$(llmis "/v1/requests/$id/events" -H "Last-Event-ID: $last")
echo "the rest: $(text <<<"$rest")"

whole=$(llmis "/v1/requests/$id/events")
if [ "$(text <<<"$first")$(text <<<"$rest")" = "$(text <<<"$whole")" ]; then
  echo "Both together are the whole answer."
else
  echo "Something is missing or came twice." >&2
  exit 1
fi
