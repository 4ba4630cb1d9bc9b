// The tokens of a request as text, in the colour of what the cache kept of them.

import { ask, refusal } from "./api.js";
import { bitsColour, bitsHue, key } from "./charts.js";
import { bytes } from "./figures.js";

/// A slider that is still moving asks for nothing.
const SETTLE_MS = 200;

const id = (name) => document.getElementById(name);

async function json(path) {
  const answer = await ask(path);
  if (!answer.ok) throw new Error(await refusal(answer));
  return answer.json();
}

const state = { enabled: false, request: "", budget: null, page: null, asked: 0 };

/// Where each token's score stands among all, from 0 to 1: scores differ by orders of magnitude.
function ranks(tokens) {
  const sorted = tokens.map((token) => token.score).sort((a, b) => a - b);
  const rank = (score) => {
    let [low, high] = [0, sorted.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < score) low = middle + 1; else high = middle;
    }
    return low / Math.max(1, sorted.length - 1);
  };
  return tokens.map((token) => (token.score > 0 ? rank(token.score) : 0));
}

function describe(token, at, page) {
  const heads = Object.entries(token.tiers).map(([tier, count]) => `${tier} ${count}`).join(", ");
  const part = at < page.prompt_tokens ? "prompt" : "answer";
  return `${JSON.stringify(token.text)} (${part}, position ${at}): ${token.bits.toFixed(2)} bits, `
    + `attribution ${token.score.toFixed(2)} times the mean; heads: ${heads}`;
}

function draw() {
  const { page } = state;
  if (state.budget === null) id("view-budget").value = page.budget;
  const byScore = id("view-colour").value === "score";
  const rank = ranks(page.tokens);
  const spans = page.tokens.map((token, at) => {
    const span = document.createElement("span");
    span.textContent = token.text;
    span.dataset.at = at;
    const heads = Object.values(token.tiers).reduce((sum, count) => sum + count, 0);
    if (at >= page.prompt_tokens) span.classList.add("answer");
    if (token.tiers.evicted === heads) span.classList.add("evicted");
    span.style.setProperty("--hue", byScore ? 60 : Math.round(bitsHue(token.bits)));
    span.style.setProperty("--alpha", byScore ? (0.05 + 0.9 * rank[at]).toFixed(2) : 0.75);
    span.style.setProperty("--score", byScore ? "0px" : `${[0, 0, 0, 1, 2, 4][Math.floor(rank[at] * 5)]}px`);
    return span;
  });
  id("view-text").replaceChildren(...spans);
  const tiers = Object.entries(page.bits).sort(([, a], [, b]) => b - a);
  const entries = tiers.map(([name, bits]) => ({ name: `${name} (${bits.toFixed(1)} bits)`, colour: bitsColour(bits) }));
  key(id("view-key"), byScore
    ? [{ name: "attribution, by rank", colour: "oklch(.68 .13 60)" }]
    : [...entries, { name: "evicted: struck through", colour: "transparent" }]);
  const share = Math.round(100 * page.bytes / page.f16_bytes);
  const evicted = page.tokens.filter((token) => token.tiers.evicted).length;
  id("view-summary").textContent = `${page.tokens.length} tokens (${page.prompt_tokens} of the prompt) at budget `
    + `${page.budget.toFixed(2)}: ${bytes(page.bytes)}, ${share} % of F16; ${evicted} tokens evicted in at least one head. `
    + "The line under a token grows with its attribution.";
}

function fillLayers(page) {
  const select = id("view-layer");
  if (select.options.length === page.num_layers + 1) return;
  const layers = Array.from({ length: page.num_layers }, (_, layer) => new Option(`layer ${layer}`, String(layer)));
  select.replaceChildren(new Option("all, averaged", ""), ...layers);
}

async function load() {
  if (!state.enabled || !state.request) return;
  state.asked += 1;
  const asked = state.asked;
  const query = new URLSearchParams();
  if (id("view-layer").value) query.set("layer", id("view-layer").value);
  if (state.budget !== null) query.set("budget", state.budget);
  id("view-budget-value").textContent = state.budget === null ? "as asked" : state.budget.toFixed(2);
  id("view-text").setAttribute("aria-busy", "true");
  try {
    const page = await json(`/debug/kv/${encodeURIComponent(state.request)}?${query}`);
    // A later question overtook this one.
    if (asked !== state.asked) return;
    state.page = page;
    fillLayers(page);
    draw();
  } catch (error) {
    if (asked === state.asked) id("view-summary").textContent = error.message;
  } finally {
    if (asked === state.asked) id("view-text").removeAttribute("aria-busy");
  }
}

async function list() {
  const { requests } = await json("/debug/kv");
  const options = requests.map(({ id: request, tokens, budget }) =>
    new Option(`${request.slice(0, 17)}: ${tokens} tokens, budget ${budget.toFixed(2)}`, request));
  id("view-request").replaceChildren(...(options.length ? options : [new Option("none yet", "")]));
  if (!requests.some((request) => request.id === state.request)) state.request = requests[0]?.id ?? "";
  id("view-request").value = state.request;
}

function point(event) {
  const span = event.target.closest("span[data-at]");
  if (!span) return;
  id("view-text").querySelector(".chosen")?.classList.remove("chosen");
  span.classList.add("chosen");
  const at = Number(span.dataset.at);
  id("view-token").textContent = describe(state.page.tokens[at], at, state.page);
}

export function startAttribution() {
  let settling;
  id("view-budget").addEventListener("input", () => {
    state.budget = Number(id("view-budget").value);
    id("view-budget-value").textContent = state.budget.toFixed(2);
    clearTimeout(settling);
    settling = setTimeout(load, SETTLE_MS);
  });
  id("view-asked").addEventListener("click", () => { state.budget = null; load(); });
  id("view-layer").addEventListener("change", load);
  id("view-colour").addEventListener("change", () => state.page && draw());
  // Not on focus: that would close the list that is being opened.
  id("view-request").addEventListener("pointerenter", () => list().catch(() => {}));
  id("view-request").addEventListener("change", () => { state.request = id("view-request").value; load(); });
  id("view-text").addEventListener("pointerover", point);
  id("view-text").addEventListener("pointerdown", point);
  return {
    /// Whether the server keeps what requests leave.
    enable(enabled) {
      if (enabled === state.enabled) return;
      state.enabled = enabled;
      id("attribution").hidden = !enabled;
      id("attribution-off").hidden = enabled;
      if (enabled) list().then(load).catch(() => {});
    },
    /// Shows a request that has just ended, as it was asked.
    async show(request) {
      if (!state.enabled) return;
      state.request = request;
      state.budget = null;
      await list();
      await load();
    },
  };
}
