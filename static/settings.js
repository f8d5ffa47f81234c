/** The fields of the panel: model, system message, sampling. */

import * as apiKey from './api_key.js';
import { countText } from './conversation.js';

const DEFAULTS = { model: null, system: '', temperature: 0.7, maxTokens: null };
const WIDE = '(min-width: 56rem)';

/** The server requires an API key, or another one. */
export class KeyRefused extends Error {}

export class Settings {
  #model = document.getElementById('model');
  #modelNote = document.getElementById('model-note');
  #system = document.getElementById('system');
  #temperature = document.getElementById('temperature');
  #maxTokens = document.getElementById('max-tokens');
  #models = [];
  #wantedModel;

  constructor(saved, onChange) {
    const values = { ...DEFAULTS, ...saved };
    this.#wantedModel = values.model;
    this.#system.value = values.system;
    this.#temperature.value = values.temperature ?? '';
    this.#maxTokens.value = values.maxTokens ?? '';
    // In a narrow window the conversation needs the room more.
    document.getElementById('system-box').open = matchMedia(WIDE).matches;
    this.#model.addEventListener('change', () => this.#choose(this.#model.value));
    for (const field of [this.#model, this.#system, this.#temperature, this.#maxTokens]) {
      field.addEventListener('input', onChange);
    }
  }

  get values() {
    return {
      model: this.#wantedModel,
      system: this.#system.value,
      temperature: numberIn(this.#temperature),
      maxTokens: numberIn(this.#maxTokens),
    };
  }

  /** Whether a request can be made from the fields; shows the one that is wrong. */
  check() {
    for (const field of [this.#temperature, this.#maxTokens]) {
      if (field.checkValidity()) continue;
      document.getElementById('sampling-box').open = true;
      field.reportValidity();
      return false;
    }
    return true;
  }

  get hasModel() {
    return this.#models.length > 0;
  }

  /** Read the list of models. Throws KeyRefused, or Error with a text for the user. */
  async loadModels() {
    this.#models = await fetchModels();
    this.#model.replaceChildren(...this.#models.map(optionOf));
    this.#model.disabled = this.#models.length === 0;
    if (this.#models.length === 0) throw new Error('The server has no chat model.');
    const isOffered = this.#models.some((model) => model.id === this.#wantedModel);
    this.#choose(isOffered ? this.#wantedModel : firstReady(this.#models).id);
  }

  /** The list of models needs a key. */
  showLocked() {
    if (!this.hasModel) this.#model.replaceChildren(new Option('Needs an API key'));
  }

  /** Read the list again after an answer: its model may have been loaded for it. */
  async refresh() {
    const model = this.#models.find(({ id }) => id === this.#wantedModel);
    if (model?.state !== 'ready') await this.loadModels();
  }

  #choose(id) {
    this.#wantedModel = id;
    this.#model.value = id;
    this.#modelNote.textContent = noteOf(this.#models.find((model) => model.id === id));
  }
}

async function fetchModels() {
  let response;
  try {
    response = await fetch('v1/models', { headers: apiKey.headers() });
  } catch {
    throw new Error('The list of models could not be loaded: the server does not answer.');
  }
  if (response.status === 401) throw new KeyRefused((await response.json()).error.message);
  if (!response.ok) {
    throw new Error(`The list of models could not be loaded: status ${response.status}.`);
  }
  const models = (await response.json()).data;
  // The capabilities of a model are known once it was loaded.
  return models.filter((model) => model.capabilities?.includes('chat') ?? true);
}

function firstReady(models) {
  return models.find((model) => model.state === 'ready') ?? models[0];
}

const STATES = {
  loading: 'loading',
  unloading: 'unloading',
  unloaded: 'not loaded',
  failed: 'failed',
};

function optionOf(model) {
  return new Option(model.state === 'ready' ? model.id : `${model.id} (${STATES[model.state]})`, model.id);
}

function noteOf(model) {
  return model.context_length ? `${countText(model.context_length)} tokens of context` : '';
}

function numberIn(field) {
  return field.value === '' ? null : field.valueAsNumber;
}
