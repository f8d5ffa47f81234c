/**
 * The API key, where the server requires one.
 *
 * It is kept in this tab and removed with it. By the user's choice it is kept on the device, in the
 * browser's files, until it is forgotten.
 */

const NAME = 'llmis.key';

let key = read(() => sessionStorage) ?? read(() => localStorage) ?? '';

/** The key; '' = none. */
export function value() {
  return key;
}

/** The headers of an HTTP request. */
export function headers() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

export function set(newKey, isRemembered) {
  forget();
  key = newKey;
  try {
    (isRemembered ? localStorage : sessionStorage).setItem(NAME, key);
  } catch {
    // Full or forbidden: the key is kept until the page is reloaded.
  }
}

export function forget() {
  key = '';
  for (const storage of [() => sessionStorage, () => localStorage]) {
    try {
      storage().removeItem(NAME);
    } catch {
      // Forbidden: then nothing is in it.
    }
  }
}

function read(storage) {
  try {
    return storage().getItem(NAME);
  } catch {
    return null;
  }
}
