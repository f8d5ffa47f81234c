// Several requests over one WebSocket, which is cut during the answers: accepted requests are
// resumed over another one. Needs Node 22 or a browser, whose WebSocket cannot send headers.
//
//     node websocket.mjs "1 2 3" "10 20 30" "500"

const url = (process.env.LLMIS_URL ?? 'http://127.0.0.1:8000').replace(/^http/, 'ws') + '/v1/ws';
const headers = { Authorization: `Bearer ${process.env.OPENAI_API_KEY ?? 'none'}` };
const model = process.env.MODEL ?? 'gemma-3-270m';
const prompts = process.argv.length > 2 ? process.argv.slice(2) : ['1 2 3', '10 20 30', '500'];

const requests = new Map(
  prompts.map((prompt, i) => {
    const key = crypto.randomUUID();
    return [`${i}`, { prompt, key, lastEventId: null, text: '', isDone: false }];
  }),
);

function frame(id, { prompt, key, lastEventId }) {
  if (lastEventId) return { type: 'resume', id, last_event_id: lastEventId };
  const body = { model, prompt, max_tokens: 200, ignore_eos: true };
  return { type: 'request', id, endpoint: 'completions', idempotency_key: key, body };
}

const isOpen = () => [...requests.values()].some((request) => !request.isDone);

// One connection, until it closes; isCut: until the first text.
function converse(isCut) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url, { headers });
    socket.onopen = () => {
      for (const [id, request] of requests) {
        if (!request.isDone) socket.send(JSON.stringify(frame(id, request)));
      }
    };
    socket.onmessage = ({ data }) => {
      if (socket.readyState !== WebSocket.OPEN) return;
      const { type, id, event_id, error, data: chunk } = JSON.parse(data);
      if (type === 'error') return reject(new Error(error.message));
      const request = requests.get(id);
      request.lastEventId = event_id ?? request.lastEventId;
      if (type === 'chunk') request.text += chunk.choices[0].text;
      if (type === 'done') request.isDone = true;
      if ((isCut && type === 'chunk') || !isOpen()) socket.close();
    };
    socket.onclose = resolve;
  });
}

let connections = 0;
while (isOpen() && connections < 10) {
  if (connections > 0) await new Promise((resolve) => setTimeout(resolve, 500));
  await converse(connections++ === 0);
}
if (isOpen()) throw new Error('The service cannot be reached.');
for (const { prompt, text } of requests.values()) console.log(`${prompt} …${text}`);
console.error(`${connections} connections, ${requests.size} whole answers`);
