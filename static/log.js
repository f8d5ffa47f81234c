/** The conversation on the screen: the list of turns and where it is scrolled to. */

import { statsText } from './conversation.js';

const END_MARGIN_PX = 48;

export class Log {
  #scroller = document.getElementById('log');
  #list = document.getElementById('turns');
  #toEnd = document.getElementById('to-end');
  #isAtEnd = true;

  constructor() {
    // Kept up to date here so that a chunk need not ask for the layout to know it.
    this.#scroller.addEventListener('scroll', () => this.#look(), { passive: true });
    this.#toEnd.addEventListener('click', () => {
      this.scrollToEnd();
      this.#scroller.focus();
    });
    // A growing message field or a turned phone takes height away from the end.
    new ResizeObserver(() => this.follow()).observe(this.#scroller);
  }

  add(turn, actions) {
    const view = new TurnView(turn, actions, () => this.follow());
    this.#list.append(view.element);
    return view;
  }

  clear() {
    this.#list.replaceChildren();
    this.scrollToEnd();
  }

  scrollToEnd() {
    this.#isAtEnd = true;
    this.follow();
  }

  /** Keep the end visible for a reader at the end; do not move one who has scrolled up. */
  follow() {
    if (this.#isAtEnd) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#toEnd.hidden = this.#isAtEnd;
  }

  #look() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    this.#isAtEnd = scrollHeight - scrollTop - clientHeight < END_MARGIN_PX;
    this.#toEnd.hidden = this.#isAtEnd;
  }
}

/** One question and its answer. Model text goes into text nodes and nowhere else. */
class TurnView {
  #turn;
  #onGrown;
  #pending = '';
  #frame = 0;
  #textNode = document.createTextNode('');
  #reasoningNode = document.createTextNode('');

  constructor(turn, actions, onGrown) {
    this.#turn = turn;
    this.#onGrown = onGrown;
    const template = document.getElementById('turn-template');
    this.element = template.content.firstElementChild.cloneNode(true);
    this.#find('.question .text').textContent = turn.question;
    this.#find('.answer .text').append(this.#textNode);
    this.#find('.reasoning p').append(this.#reasoningNode);
    this.#find('.retry').addEventListener('click', actions.onRetry);
    this.#find('.edit').addEventListener('click', actions.onEdit);
    this.reset();
  }

  /** Show the turn as it is now, from the beginning. */
  reset() {
    this.#pending = '';
    this.#textNode.data = this.#turn.text;
    this.#reasoningNode.data = '';
    this.#find('.answer .model').textContent = this.#turn.model;
    this.update();
  }

  /** Add text at the next frame: chunks may come faster than the screen can show them. */
  append(text) {
    this.#pending += text;
    this.#frame ||= requestAnimationFrame(() => this.#flush());
  }

  /** Show what is not text: state, figures, error. */
  update() {
    if (this.#turn.state !== 'streaming') this.#flush();
    this.element.dataset.state = this.#turn.state;
    this.element.ariaBusy = String(this.#turn.state === 'streaming');
    this.#find('.stats').textContent = statsText(this.#turn);
    this.#showFailure(this.#turn.error);
    this.#onGrown();
  }

  #flush() {
    // A hidden tab runs no frames; the end of the answer does not wait for one.
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    // A turn that was stored by an older version has no reasoning.
    const reasoning = (this.#turn.reasoning ?? '').slice(this.#reasoningNode.length);
    if (reasoning) {
      this.#reasoningNode.appendData(reasoning);
      this.#find('.reasoning').hidden = false;
    } else if (!this.#reasoningNode.length) {
      this.#find('.reasoning').hidden = true;
    }
    if (!this.#pending && !reasoning) return;
    this.#textNode.appendData(this.#pending);
    this.#pending = '';
    this.#onGrown();
  }

  #showFailure(error) {
    this.#find('.failure').hidden = !error;
    this.#find('.failure-text').textContent = error?.message ?? '';
    const details = [error?.code, error?.requestId].filter(Boolean);
    this.#find('.failure-code').textContent = details.join(' · ');
  }

  #find(selector) {
    return this.element.querySelector(selector);
  }
}
