/** The chat page: joins the connection, the conversation and the screen. */

import * as apiKey from './api_key.js';
import { Connection } from './connection.js';
import { Answer, newTurn, requestBody } from './conversation.js';
import { KeyForm } from './key_form.js';
import { Log } from './log.js';
import { KeyRefused, Settings } from './settings.js';
import * as store from './store.js';

const byId = (id) => document.getElementById(id);

class Chat {
  #message = byId('message');
  #log = new Log();
  #turns = [];
  #views = new Map();
  #answer = null;
  #numRequests = 0;
  #settings;
  #connection;
  #keyForm = new KeyForm(
    () => this.#connection.reopen(),
    () => this.#forgetKey(),
  );

  constructor() {
    const saved = store.load();
    this.#settings = new Settings(saved?.settings, () => this.#save());
    this.#message.value = saved?.draft ?? '';
    for (const turn of saved?.turns ?? []) this.#add(turn);
    this.#log.scrollToEnd();
    this.#connection = new Connection(socketUrl(), {
      onOpen: () => this.#onOpen(),
      onFrame: (frame) => this.#onFrame(frame),
      onLost: (reason, isRefused) => this.#onLost(reason, isRefused),
      onKeyRefused: (error) => this.#askForKey(error),
    });
    this.#listen();
    this.#fitMessage();
    this.#connection.open();
  }

  // -- the user --------------------------------------------------------------------------

  #listen() {
    byId('composer').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#sendMessage();
    });
    this.#message.addEventListener('input', () => this.#onTyped());
    this.#message.addEventListener('keydown', (event) => this.#onMessageKey(event));
    document.addEventListener('keydown', (event) => {
      if (event.key === 'Escape' && !event.isComposing) this.#stop();
    });
    byId('stop').addEventListener('click', () => this.#stop());
    byId('new-chat').addEventListener('click', () => this.#newChat());
    byId('try-now').addEventListener('click', () => this.#tryNow());
    addEventListener('online', () => this.#connection.open());
    addEventListener('pagehide', () => this.#save());
  }

  #onTyped() {
    this.#fitMessage();
    this.#showState();
  }

  #onMessageKey(event) {
    // While an input method composes, Enter selects a word.
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.#sendMessage();
  }

  #sendMessage() {
    const question = this.#message.value.trim();
    if (!question || !this.#canSend() || !this.#settings.check()) return;
    this.#message.value = '';
    this.#fitMessage();
    const turn = newTurn(question, this.#settings.values.model);
    this.#add(turn);
    this.#request(turn);
  }

  #retry(turn) {
    if (!this.#canSend() || !this.#settings.check()) return;
    Object.assign(turn, newTurn(turn.question, this.#settings.values.model));
    this.#views.get(turn).reset();
    this.#request(turn);
  }

  /** Put a failed message back into the field. */
  #edit(turn) {
    this.#turns = this.#turns.filter((other) => other !== turn);
    this.#views.get(turn).element.remove();
    this.#views.delete(turn);
    this.#message.value = turn.question;
    this.#message.focus();
    this.#onTyped();
    this.#save();
  }

  #stop() {
    if (!this.#answer) return;
    // Not waited for: the server's `cancelled`, or its `done` if that was faster, finds an id
    // that is no longer known.
    if (this.#connection.isOpen) this.#connection.send({ type: 'cancel', id: this.#answer.id });
    this.#answer.stop();
    this.#endAnswer();
  }

  #newChat() {
    this.#stop();
    this.#turns = [];
    this.#views.clear();
    this.#log.clear();
    announce('');
    this.#message.focus();
    this.#save();
  }

  #forgetKey() {
    this.#stop();
    apiKey.forget();
    this.#connection.reopen();
    this.#showState();
  }

  // -- the server ------------------------------------------------------------------------

  #request(turn) {
    this.#numRequests += 1;
    const body = requestBody(this.#settings.values, this.#turns);
    this.#answer = new Answer(`chat-${this.#numRequests}`, turn, body, performance.now());
    this.#connection.send(this.#answer.nextRequest());
    this.#log.scrollToEnd();
    announce('Waiting for the answer');
    this.#keepFocus();
    this.#showState();
    this.#save();
  }

  #onFrame(frame) {
    if (frame.id === null && frame.type === 'error') showNotice(frame.error.message);
    if (!this.#answer || frame.id !== this.#answer.id) return;
    const { turn } = this.#answer;
    const isFirst = turn.ttftMs === null;
    const text = this.#answer.take(frame, performance.now());
    if (frame.type === 'chunk') this.#views.get(turn).append(text);
    const begins = isFirst && turn.ttftMs !== null;
    if (['loading', 'queued', 'prefill'].includes(frame.type) || begins) this.#views.get(turn).update();
    if (turn.state !== 'streaming') this.#endAnswer();
    // The key was revoked while the page was open.
    if (frame.error?.code === 'invalid_api_key') {
      this.#askForKey(frame.error);
      this.#log.scrollToEnd();
    }
  }

  #endAnswer() {
    const { turn } = this.#answer;
    this.#answer = null;
    this.#views.get(turn).update();
    // The list is a convenience: without it the page stays usable.
    this.#settings.refresh().catch(() => {});
    announce(turn.error ? `Error: ${turn.error.message}` : turn.text);
    this.#keepFocus();
    this.#showState();
    this.#save();
  }

  #onOpen() {
    // The connection was lost during the answer: it continues after the received part.
    if (this.#answer) this.#connection.send(this.#answer.nextRequest());
    this.#showState();
    this.#loadModels();
  }

  #onLost(reason, isRefused) {
    if (this.#answer && isRefused) {
      this.#answer.fail(reason);
      this.#endAnswer();
    }
    showNotice(`${reason} Connecting again.`, { canTry: true });
    this.#showState();
  }

  /** The conversation stays; it continues with a valid key. */
  #askForKey(error) {
    hideNotice();
    this.#keyForm.open(apiKey.value() ? error.message : '');
    this.#settings.showLocked();
    if (error.code === 'invalid_api_key') apiKey.forget();
    this.#showState();
  }

  #tryNow() {
    if (this.#connection.isOpen) this.#loadModels();
    else this.#connection.open();
  }

  async #loadModels() {
    try {
      await this.#settings.loadModels();
      hideNotice();
      this.#keyForm.close();
    } catch (error) {
      if (error instanceof KeyRefused) {
        this.#askForKey({ code: 'invalid_api_key', message: error.message });
      } else {
        showNotice(error.message, { canTry: true });
      }
    }
    this.#showState();
    this.#save();
  }

  // -- the screen ------------------------------------------------------------------------

  #add(turn) {
    this.#turns.push(turn);
    const actions = { onRetry: () => this.#retry(turn), onEdit: () => this.#edit(turn) };
    this.#views.set(turn, this.#log.add(turn, actions));
  }

  #canSend() {
    const canAsk = this.#connection.isOpen && !this.#keyForm.isOpen;
    return canAsk && !this.#answer && this.#settings.hasModel;
  }

  #showState() {
    byId('stop').hidden = !this.#answer;
    byId('send').hidden = Boolean(this.#answer);
    byId('send').disabled = !this.#canSend() || !this.#message.value.trim();
  }

  /** A button that is about to disappear must not take the keyboard focus with it. */
  #keepFocus() {
    const focused = document.activeElement;
    if (focused?.matches('#send, #stop, .retry')) this.#message.focus();
  }

  #fitMessage() {
    this.#message.style.height = 'auto';
    this.#message.style.height = `${this.#message.scrollHeight}px`;
  }

  #save() {
    store.save({
      settings: this.#settings.values,
      draft: this.#message.value,
      turns: this.#turns,
    });
  }
}

function socketUrl() {
  const url = new URL('v1/ws', location.href);
  url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
  return url.href;
}

/** Say something to a screen reader: an answer as a whole, never its tokens. */
function announce(text) {
  byId('announcer').textContent = text;
}

function showNotice(text, { canTry = false } = {}) {
  byId('notice-text').textContent = text;
  byId('try-now').hidden = !canTry;
  byId('notice').hidden = false;
}

function hideNotice() {
  byId('notice').hidden = true;
}

new Chat();
