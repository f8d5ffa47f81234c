/**
 * One WebSocket to the service that comes back by itself.
 *
 * It counts as open when the first frame has come, not when the handshake is done: the server
 * refuses a page of another origin only after the handshake (docs/protocol.md).
 */

import * as apiKey from './api_key.js';

const FIRST_WAIT_MS = 500;
const MAX_WAIT_MS = 15000;
const PING_MS = 20000;
const POLICY_VIOLATION = 1008;
const MESSAGE_TOO_BIG = 1009;
/** Codes of errors that another key may resolve: an invalid key, or too many before it. */
const KEY_FAULTS = ['invalid_api_key', 'rate_limit_exceeded'];

export class Connection {
  #url;
  #listener;
  #socket = null;
  #isOpen = false;
  #isHeard = false;
  #waitMs = FIRST_WAIT_MS;
  #retryTimer = 0;
  #pingTimer = 0;

  /**
   * `listener` has onOpen(), onFrame(frame), onLost(reason, isRefused), and onKeyRefused(error):
   * then the connection waits for open(), with another key.
   */
  constructor(url, listener) {
    this.#url = url;
    this.#listener = listener;
  }

  get isOpen() {
    return this.#isOpen;
  }

  /** Connect, unless a connection is open or opening. */
  open() {
    clearTimeout(this.#retryTimer);
    if (this.#socket) return;
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    this.#isHeard = false;
    socket.addEventListener('open', () => this.send(firstFrame()));
    socket.addEventListener('message', (event) => {
      if (socket === this.#socket) this.#take(JSON.parse(event.data));
    });
    socket.addEventListener('close', (event) =>
      this.#lose(socket, reasonOf(event), event.code === MESSAGE_TOO_BIG),
    );
    this.#pingTimer = setInterval(() => this.#checkLife(socket), PING_MS);
  }

  /** Connect again, with another key. */
  reopen() {
    this.#drop();
    this.open();
  }

  send(frame) {
    this.#socket.send(JSON.stringify(frame));
  }

  #take(frame) {
    this.#isHeard = true;
    if (!this.#isOpen && frame.type === 'error') {
      this.#refuse(frame.error);
      return;
    }
    if (!this.#isOpen) {
      this.#isOpen = true;
      this.#waitMs = FIRST_WAIT_MS;
      this.#listener.onOpen();
    }
    this.#listener.onFrame(frame);
  }

  /** The server refused the first frame. */
  #refuse(error) {
    if (!KEY_FAULTS.includes(error.code)) {
      this.#lose(this.#socket, error.message);
      return;
    }
    this.#drop();
    this.#listener.onKeyRefused(error);
  }

  /** A dead network closes no connection: only a missing pong shows it. */
  #checkLife(socket) {
    if (!this.#isHeard) {
      this.#lose(socket, 'The server does not answer.');
      return;
    }
    this.#isHeard = false;
    this.send({ type: 'ping' });
  }

  /** `isRefused`: what was sent must not be sent again. */
  #lose(socket, reason, isRefused = false) {
    // A socket that was given up reports its close much later.
    if (socket !== this.#socket) return;
    this.#drop();
    // The random part keeps many pages from reconnecting at the same moment.
    this.#retryTimer = setTimeout(() => this.open(), this.#waitMs * (0.75 + Math.random() / 2));
    this.#waitMs = Math.min(2 * this.#waitMs, MAX_WAIT_MS);
    this.#listener.onLost(reason, isRefused);
  }

  #drop() {
    clearTimeout(this.#retryTimer);
    clearInterval(this.#pingTimer);
    const socket = this.#socket;
    this.#socket = null;
    this.#isOpen = false;
    socket?.close();
  }
}

function firstFrame() {
  const key = apiKey.value();
  return key ? { type: 'auth', key } : { type: 'ping' };
}

function reasonOf(event) {
  if (event.code === MESSAGE_TOO_BIG) return 'The request is larger than the server accepts.';
  if (event.code === POLICY_VIOLATION && event.reason) {
    return `The server closed the connection: ${event.reason}.`;
  }
  return 'The connection to the server was lost.';
}
