// The openai package of npm against a running service. Prints one JSON line a step; the test
// that runs it, tests/clients/test_openai_node.py, knows what must be in them.
//
//     node client.mjs BASE_URL TOOL_MODEL EMBEDDING_MODEL

import OpenAI from 'openai';
import { zodFunction, zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';

const [baseURL, toolModel, embeddingModel] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0, timeout: 60_000 });

const chat = {
  model: 'counter',
  messages: [{ role: 'user', content: '17' }],
  max_tokens: 8,
  temperature: 0,
};
const long = {
  model: 'gemma-3-270m',
  prompt: 'Once upon a time',
  max_tokens: 3000,
  logit_bias: { 1: -100, 106: -100 },
};
const Lamp = z.object({ colour: z.enum(['red', 'green']), is_on: z.boolean() });

const steps = {
  async chat() {
    const { data, response, request_id } = await client.chat.completions
      .create({ ...chat, n: 2 })
      .withResponse();
    const texts = data.choices.map((choice) => choice.message.content);
    return { texts, usage: data.usage, isNamed: response.headers.get('x-request-id') === request_id };
  },

  async stream() {
    const options = { include_usage: true };
    const stream = client.chat.completions.stream({ ...chat, stream_options: options });
    let text = '';
    stream.on('content', (delta) => (text += delta));
    const final = await stream.finalChatCompletion();
    return { text, final: final.choices[0].message.content, usage: final.usage };
  },

  async concurrentStreams() {
    const text = async (start) => {
      const messages = [{ role: 'user', content: `${start}` }];
      let said = '';
      for await (const chunk of await client.chat.completions.create({ ...chat, messages, stream: true })) {
        said += chunk.choices[0].delta.content ?? '';
      }
      return said;
    };
    return { texts: await Promise.all([...Array(8).keys()].map((i) => text(100 * i))) };
  },

  async parse() {
    const answer = await client.chat.completions.parse({
      ...chat,
      max_tokens: 400,
      response_format: zodResponseFormat(Lamp, 'lamp'),
    });
    return { parsed: answer.choices[0].message.parsed };
  },

  async tools() {
    const taken = [];
    const lamp = zodFunction({
      name: 'lamp',
      parameters: Lamp,
      function: (settings) => {
        taken.push(settings);
        return '640';
      },
    });
    const request = { ...chat, model: toolModel, max_tokens: 200, parallel_tool_calls: false };
    const named = { type: 'function', function: { name: 'lamp' } };
    const runs = [
      client.chat.completions.runTools({ ...request, tools: [lamp], tool_choice: named }),
      client.chat.completions.runTools({ ...request, tools: [lamp], tool_choice: named, stream: true }),
    ];
    const after = [];
    for (const run of runs) {
      await run.done();
      const messages = run.messages;
      const answer = await client.chat.completions.create({ ...request, messages, max_tokens: 3 });
      after.push(answer.choices[0].message.content);
    }
    const loop = client.chat.completions.runTools(
      { ...request, tools: [lamp], tool_choice: 'required' },
      { maxChatCompletions: 3 },
    );
    await loop.done();
    return { taken, after, loop: loop.messages.map((message) => message.role) };
  },

  async embeddings() {
    const { data } = await client.embeddings.create({ model: embeddingModel, input: ['17 18', '5'] });
    return { vectors: data.map((item) => Array.from(item.embedding)) };
  },

  async models() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    return { names };
  },

  async abort() {
    const stream = await client.completions.create({ ...long, stream: true });
    for await (const chunk of stream) {
      stream.controller.abort();
      return { id: chunk.id };
    }
  },

  async errors() {
    const named = async (request) => {
      const error = await request.catch((caught) => caught);
      const { status, code, param, type } = error;
      return { kind: error.constructor.name, status, code, param, type, hasId: Boolean(error.requestID) };
    };
    const short = { timeout: 300 };
    return {
      notFound: await named(client.chat.completions.create({ ...chat, model: 'none' })),
      badRequest: await named(client.chat.completions.create({ ...chat, temperature: 3, stream: true })),
      timeout: await named(client.completions.create(long, short)),
    };
  },
};

for (const [step, run] of Object.entries(steps)) {
  console.log(JSON.stringify({ step, ...(await run()) }));
}
