/** Keeps the chat through a reload, in this tab only. */

const KEY = 'llmis.chat';

export function save(chat) {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(chat));
  } catch {
    // Full or forbidden: the chat continues, but a reload will lose it.
  }
}

/** The saved chat, or null. */
export function load() {
  try {
    const chat = JSON.parse(sessionStorage.getItem(KEY));
    chat?.turns.forEach(endInterrupted);
    return chat;
  } catch {
    return null;
  }
}

/** Only the page that sent the request resumes its answer when the connection breaks. */
function endInterrupted(turn) {
  if (turn.state !== 'streaming') return;
  turn.state = 'failed';
  turn.error = {
    message: 'The page was reloaded before the answer was complete.',
    code: null,
    requestId: null,
  };
}
