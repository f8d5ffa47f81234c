// The answer piece by piece, with the openai package. npm install openai
//
//     node chat.mjs "What is the capital of France?"

import OpenAI from 'openai';

const client = new OpenAI({
  baseURL: process.env.OPENAI_BASE_URL ?? 'http://127.0.0.1:8000/v1',
  apiKey: process.env.OPENAI_API_KEY ?? 'none',
});
const stream = await client.chat.completions.create({
  model: process.env.MODEL ?? 'gemma-3-270m',
  messages: [{ role: 'user', content: process.argv[2] ?? 'What is the capital of France?' }],
  max_tokens: 100,
  temperature: 0,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta.content ?? '');
  if (chunk.usage) console.log(`\n(${chunk.usage.completion_tokens} tokens)`);
}
