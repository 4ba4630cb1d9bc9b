// Every question to the server, with the API key where it asks for one.

const STORED = "keepwell-api-key";

const id = (name) => document.getElementById(name);

/// Of this tab, until it is closed.
let key = sessionStorage.getItem(STORED);
/// While the server refuses: what waits for a key, and what ends the wait.
let locked = null;
let unlock = null;

function lock(message) {
  sessionStorage.removeItem(STORED);
  id("key-message").textContent = message;
  id("forget-key").hidden = true;
  document.body.classList.add("locked");
  if (locked) return;
  locked = new Promise((resolve) => { unlock = resolve; });
  id("key").focus();
}

/// As `fetch`; waits for a key while there is none that the server knows. `timeout` is in
/// milliseconds.
export async function ask(path, { timeout, headers, ...options } = {}) {
  await locked;
  const sent = key;
  const signals = [options.signal, timeout && AbortSignal.timeout(timeout)].filter(Boolean);
  const answer = await fetch(path, {
    ...options,
    headers: { ...headers, ...(sent && { authorization: `Bearer ${sent}` }) },
    signal: signals.length ? AbortSignal.any(signals) : undefined,
  });
  if (answer.status !== 401) return answer;
  const message = await refusal(answer);
  // Another key may have been given meanwhile.
  if (sent === key) lock(sent ? message : "");
  throw new Error(message);
}

/// Why an answer is none.
export async function refusal(answer) {
  const said = await answer.json().catch(() => null);
  return said?.error?.message ?? `status ${answer.status}`;
}

export function startKeys() {
  id("forget-key").hidden = !key;
  id("forget-key").addEventListener("click", () => {
    sessionStorage.removeItem(STORED);
    location.reload();
  });
  id("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = id("key").value.trim();
    // What else is in it no header can carry.
    if (!/^[\x21-\x7e]+$/.test(typed)) {
      id("key-message").textContent = "an API key has letters, digits and signs only, and no spaces";
      return;
    }
    key = typed;
    sessionStorage.setItem(STORED, typed);
    id("key").value = "";
    id("forget-key").hidden = false;
    document.body.classList.remove("locked");
    unlock?.();
    locked = null;
  });
}
