/** The conversation and its answers. No DOM, no socket. */

/** One question and its answer; everything here outlives a reload. */
export function newTurn(question, model) {
  return {
    question,
    model,
    text: '',
    reasoning: '', // the model's text before the answer
    state: 'streaming', // then done, stopped or failed
    finishReason: null,
    load: null, // { model, stage, fraction } while its model is being loaded
    prefill: null, // fraction of the prompt that has been read, while a long one is
    ttftMs: null,
    tokens: null,
    tokensPerS: null,
    error: null, // { message, code, requestId }
  };
}

/** The body of a request whose last turn waits for its answer. */
export function requestBody(settings, turns) {
  const body = {
    model: turns.at(-1).model,
    messages: messagesOf(settings.system, turns),
    stream_options: { include_usage: true },
  };
  if (settings.temperature !== null) body.temperature = settings.temperature;
  if (settings.maxTokens !== null) body.max_tokens = settings.maxTokens;
  return body;
}

function messagesOf(system, turns) {
  const messages = [];
  if (system.trim()) messages.push({ role: 'system', content: system });
  for (const turn of turns.slice(0, -1)) {
    // Many chat templates refuse two user messages in a row: a question without an answer
    // is left out.
    if (!turn.text) continue;
    messages.push({ role: 'user', content: turn.question });
    messages.push({ role: 'assistant', content: turn.text });
  }
  messages.push({ role: 'user', content: turns.at(-1).question });
  return messages;
}

/** Fills one turn from its frames and measures its times. */
export class Answer {
  #sentAtMs;
  #firstAtMs = null;
  #requestId = null;
  #body;
  #idempotencyKey = randomKey();
  #lastEventId = null;

  constructor(id, turn, body, nowMs) {
    this.id = id;
    this.turn = turn;
    this.#body = body;
    this.#sentAtMs = nowMs;
  }

  /** What to send on a new connection: for the answer, or for what is missing of it. */
  nextRequest() {
    if (this.#lastEventId !== null) {
      return { type: 'resume', id: this.id, last_event_id: this.#lastEventId };
    }
    return {
      type: 'request',
      id: this.id,
      endpoint: 'chat.completions',
      // Sent twice, it is still one request.
      idempotency_key: this.#idempotencyKey,
      body: this.#body,
    };
  }

  /** Act on one frame; returns the text that it adds, reasoning aside. */
  take(frame, nowMs) {
    this.#lastEventId = frame.event_id ?? this.#lastEventId;
    if (frame.type === 'accepted') this.#requestId = frame.request_id;
    else if (frame.type === 'loading') this.turn.load = frame;
    else if (frame.type === 'queued') this.turn.queuePosition = frame.position;
    else if (frame.type === 'prefill') this.turn.prefill = frame.fraction;
    else if (frame.type === 'chunk') return this.#takeChunk(frame.data, nowMs);
    else if (frame.type === 'done') this.#finish(nowMs);
    else if (frame.type === 'error') this.fail(frame.error.message, frame.error.code);
    // A stop by the user is not waited for: this one came from the server.
    else if (frame.type === 'cancelled') this.fail('The server ended the answer early.');
    return '';
  }

  stop() {
    this.turn.state = 'stopped';
  }

  fail(message, code = null) {
    this.turn.state = 'failed';
    this.turn.error = { message, code, requestId: this.#requestId };
  }

  #takeChunk(chunk, nowMs) {
    if (chunk.usage) this.turn.tokens = chunk.usage.completion_tokens;
    const choice = chunk.choices[0];
    if (!choice) return '';
    if (choice.finish_reason) this.turn.finishReason = choice.finish_reason;
    const text = choice.delta.content ?? '';
    const reasoning = choice.delta.reasoning_content ?? '';
    this.turn.reasoning += reasoning;
    if ((text || reasoning) && this.#firstAtMs === null) {
      this.#firstAtMs = nowMs;
      this.turn.ttftMs = nowMs - this.#sentAtMs;
    }
    this.turn.text += text;
    return text;
  }

  #finish(nowMs) {
    this.turn.state = 'done';
    if (this.#firstAtMs === null || this.turn.tokens === null) return;
    // The first token belongs to the time before it: n tokens have n - 1 gaps.
    const seconds = (nowMs - this.#firstAtMs) / 1000;
    if (this.turn.tokens > 1 && seconds > 0) {
      this.turn.tokensPerS = (this.turn.tokens - 1) / seconds;
    }
  }
}

/** Without crypto.randomUUID, which plain HTTP does not have. */
function randomKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });

/** The line under an answer. */
export function statsText(turn) {
  if (turn.state === 'streaming' && turn.ttftMs === null) return waitingText(turn);
  const parts = [];
  if (turn.tokens !== null) parts.push(`${whole.format(turn.tokens)} ${plural(turn.tokens)}`);
  if (turn.tokensPerS !== null) parts.push(`${rateText(turn.tokensPerS)} tokens/s`);
  if (turn.ttftMs !== null) parts.push(`first token after ${durationText(turn.ttftMs)}`);
  if (turn.finishReason === 'length') parts.push('ended at the token limit');
  if (turn.finishReason === 'content_filter') parts.push('ended by the content filter');
  if (turn.state === 'stopped') parts.push('stopped');
  return parts.join(' · ');
}

function waitingText({ load, queuePosition: ahead, prefill }) {
  // The latest stage first: what came before it stays in the turn.
  if (prefill !== null) return `Reading the prompt ${whole.format(100 * prefill)} %`;
  if (!load) {
    if (!ahead) return ahead === 0 ? 'Next in the queue' : 'Waiting for the first token';
    return `In the queue behind ${whole.format(ahead)} ${ahead === 1 ? 'request' : 'requests'}`;
  }
  return `Loading ${load.model}: ${load.stage} ${whole.format(100 * load.fraction)} %`;
}

/** "4,096", the way every number of tokens is written. */
export function countText(count) {
  return whole.format(count);
}

function plural(count) {
  return count === 1 ? 'token' : 'tokens';
}

function rateText(rate) {
  return rate < 100 ? fine.format(rate) : whole.format(rate);
}

function durationText(ms) {
  return ms < 1000 ? `${whole.format(ms)} ms` : `${fine.format(ms / 1000)} s`;
}
