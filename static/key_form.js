/** The form for the API key. It replaces the message field. */

import * as apiKey from './api_key.js';

const VISIBLE_ASCII = /^[!-~]+$/;

export class KeyForm {
  #form = document.getElementById('key-form');
  #field = document.getElementById('key');
  #isRemembered = document.getElementById('key-remember');
  #fault = document.getElementById('key-fault');
  #composer = document.getElementById('composer');
  #forget = document.getElementById('forget-key');

  /** `onKey()` is called when there is a key to try, `onForget()` to forget it. */
  constructor(onKey, onForget) {
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault();
      if (this.#take()) onKey();
    });
    this.#field.addEventListener('input', () => this.#show(''));
    this.#forget.addEventListener('click', onForget);
    this.#forget.hidden = !apiKey.value();
  }

  get isOpen() {
    return !this.#form.hidden;
  }

  /** Ask for a key; `fault` describes the problem with the last one. */
  open(fault) {
    this.#form.hidden = false;
    this.#composer.hidden = true;
    this.#forget.hidden = true;
    this.#show(fault);
    this.#field.focus();
    this.#field.select();
  }

  /** The key is valid. Does nothing when the form is closed. */
  close() {
    this.#forget.hidden = !apiKey.value();
    if (!this.isOpen) return;
    this.#form.hidden = true;
    this.#composer.hidden = false;
    this.#field.value = '';
    document.getElementById('message').focus();
  }

  #take() {
    const key = this.#field.value.trim();
    if (!VISIBLE_ASCII.test(key)) {
      this.#show(key ? 'An API key has no spaces and no accented letters.' : 'Enter a key.');
      this.#field.focus();
      return false;
    }
    apiKey.set(key, this.#isRemembered.checked);
    return true;
  }

  #show(fault) {
    this.#fault.textContent = fault;
    this.#fault.hidden = !fault;
    this.#field.ariaInvalid = String(Boolean(fault));
  }
}
