// A chat with the model, with a budget, and what the last answer cost.

import { ask as send, refusal } from "./api.js";
import { bytes } from "./figures.js";

const id = (name) => document.getElementById(name);

/// Lines of a stream of server-sent events, without their `data: `.
async function* events(body) {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const part of body) {
    rest += decoder.decode(part, { stream: true });
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
  }
}

async function* readable(body) {
  const reader = body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

function cost(usage, seconds) {
  const kv = usage.kv_cache;
  const speed = usage.completion_tokens / seconds;
  const line = `${usage.prompt_tokens} + ${usage.completion_tokens} tokens in ${seconds.toFixed(1)} s (${speed.toFixed(0)}/s)`;
  if (!kv) return line;
  const tiers = Object.entries(kv.tokens).filter(([, count]) => count > 0);
  const kept = tiers.map(([tier, count]) => `${tier} ${count}`).join(", ");
  const share = Math.round(100 * kv.bytes / kv.f16_bytes);
  return `${line}; cache ${bytes(kv.bytes)}, ${share} % of F16; entries: ${kept}`;
}

/// The chat so far, which every question carries: messages, and what shows each.
const turns = [];

function add(role, content) {
  const shown = document.createElement("p");
  shown.className = `text ${role}`;
  shown.textContent = content;
  id("chat").append(shown);
  showEnd();
  turns.push({ message: { role, content }, shown });
  return shown;
}

const showEnd = () => { id("chat").scrollTop = id("chat").scrollHeight; };

/// As many of the last turns as given, or all.
function remove(num = turns.length) {
  turns.splice(turns.length - num).forEach(({ shown }) => shown.remove());
}

/// Streams the answer into `shown`; gives the request's id.
async function ask(shown, messages, signal) {
  const body = {
    messages,
    max_tokens: Number(id("max-tokens").value) || 128,
    stream: true,
    stream_options: { include_usage: true },
    kv_cache: { budget: Number(id("budget").value) },
  };
  const began = performance.now();
  const headers = { "content-type": "application/json" };
  const answer = await send("/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!answer.ok) throw new Error(await refusal(answer));
  let request = null;
  for await (const data of events(readable(answer.body))) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    request = chunk.id;
    shown.append(chunk.choices[0]?.delta?.content ?? "");
    showEnd();
    if (chunk.usage) id("cost").textContent = cost(chunk.usage, (performance.now() - began) / 1e3);
  }
  return request;
}

/// Asks what was typed, after all turns before it. What gets no answer is given back to be sent again.
async function take(question, signal) {
  add("user", question);
  const messages = turns.map(({ message }) => message);
  const shown = add("assistant", "");
  id("prompt").value = "";
  id("cost").textContent = "";
  try {
    return await ask(shown, messages, signal);
  } finally {
    turns.at(-1).message.content = shown.textContent;
    if (!shown.textContent) {
      remove(2);
      id("prompt").value ||= question;
    }
  }
}

/// `ended` is told the id of every request that was answered.
export function startPlayground(ended) {
  const showBudget = () => { id("budget-value").textContent = Number(id("budget").value).toFixed(2); };
  id("budget").addEventListener("input", showBudget);
  showBudget();
  let running = null;
  const show = () => {
    id("send").disabled = id("anew").disabled = running !== null;
    id("stop").hidden = running === null;
    id("anew").hidden = turns.length === 0;
  };
  id("stop").addEventListener("click", () => running?.abort());
  id("anew").addEventListener("click", () => {
    remove();
    id("cost").textContent = "";
    show();
    id("prompt").focus();
  });
  id("playground").addEventListener("submit", async (event) => {
    event.preventDefault();
    const question = id("prompt").value.trim();
    if (running || !question) return;
    running = new AbortController();
    show();
    try {
      const request = await take(question, running.signal);
      if (request) ended(request);
    } catch (error) {
      id("cost").textContent = error.name === "AbortError" ? "stopped" : error.message;
    } finally {
      running = null;
      show();
    }
  });
}
