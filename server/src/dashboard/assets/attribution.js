// The tokens of a request as text, in the colour of what the cache kept of them.

import { ask, refusal } from "./api.js";
import { key } from "./charts.js";
import { bytes } from "./figures.js";
import { byBits, tierColour } from "./tiers.js";

/// A slider that is still moving asks for nothing.
const SETTLE_MS = 200;
/// Of a colour behind text.
const ALPHA = 0.5;

const id = (name) => document.getElementById(name);

async function json(path, signal) {
  const answer = await ask(path, { signal });
  if (!answer.ok) throw new Error(await refusal(answer));
  return answer.json();
}

/// `request` is chosen, `shown` was the last one asked for, `asking` ends the question that is open.
const state = { enabled: false, request: "", shown: "", budget: null, page: null, asking: null };

/// Where each token's score stands among all, from 0 to 1: scores differ by orders of magnitude. What
/// no head holds has the score that it was evicted with.
function ranks(tokens) {
  const scores = tokens.map((token) => token.score ?? token.evicted_score ?? 0);
  const sorted = scores.toSorted((a, b) => a - b);
  const rank = (score) => {
    let [low, high] = [0, sorted.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < score) low = middle + 1; else high = middle;
    }
    return low / Math.max(1, sorted.length - 1);
  };
  return scores.map((score) => (score > 0 ? rank(score) : 0));
}

const numHeads = (token) => Object.values(token.tiers).reduce((sum, count) => sum + count, 0);

function describe(token, at, page) {
  const heads = numHeads(token);
  const evicted = token.tiers.evicted ?? 0;
  const part = at < page.prompt_tokens ? "prompt" : "answer";
  const times = (score) => (score === null ? "not known" : `${score.toFixed(2)} times the mean`);
  const tiers = Object.entries(token.tiers).filter(([tier]) => tier !== "evicted");
  const said = [`${JSON.stringify(token.text)} (${part}, position ${at}): ${token.bits.toFixed(2)} bits`];
  if (tiers.length) {
    const list = tiers.map(([tier, count]) => `${tier} ${count}`).join(", ");
    said.push(`held in ${heads - evicted} of ${heads} heads (${list}), there attribution ${times(token.score)}`);
  }
  if (evicted) said.push(`evicted in ${evicted} of ${heads} heads, with attribution then ${times(token.evicted_score)}`);
  return said.join("; ");
}

/// The heads' tiers lie behind a token on top of each other, most bits at the bottom; what is evicted
/// is left blank.
function bands(tiers, heads) {
  let under = 0;
  const band = (tier) => {
    const from = under;
    under += 100 * tiers[tier] / heads;
    return `${tierColour(tier, ALPHA)} ${from.toFixed(1)}% ${under.toFixed(1)}%`;
  };
  const kept = Object.keys(tiers).filter((tier) => tier !== "evicted").sort(byBits).reverse();
  return `linear-gradient(to top, ${kept.map(band).join(", ")}, transparent ${under.toFixed(1)}%)`;
}

function span(token, at, rank) {
  const span = document.createElement("span");
  span.textContent = token.text;
  span.dataset.at = at;
  const heads = numHeads(token);
  const isEvicted = token.tiers.evicted === heads;
  if (at >= state.page.prompt_tokens) span.classList.add("answer");
  if (isEvicted) span.classList.add("evicted");
  if (id("view-colour").value === "score") {
    span.classList.add("score");
    span.style.setProperty("--alpha", (0.05 + 0.9 * rank).toFixed(2));
  } else {
    if (!isEvicted) span.style.background = bands(token.tiers, heads);
    span.style.setProperty("--score", `${[0, 0, 0, 1, 2, 4][Math.floor(rank * 5)]}px`);
  }
  return span;
}

function drawKey(page) {
  const tiers = Object.keys(page.bits).sort(byBits).reverse().map((name) =>
    ({ name: `${name} (${page.bits[name].toFixed(1)} bits)`, colour: tierColour(name, ALPHA) }));
  key(id("view-key"), id("view-colour").value === "score"
    ? [{ name: "attribution, by rank", colour: "oklch(var(--token) .13 60)" }]
    : [...tiers, { name: "evicted: blank, in all heads struck through", colour: "transparent" }]);
}

function draw() {
  const { page } = state;
  if (state.budget === null) id("view-budget").value = page.budget;
  const rank = ranks(page.tokens);
  id("view-text").replaceChildren(...page.tokens.map((token, at) => span(token, at, rank[at])));
  drawKey(page);
  const share = Math.round(100 * page.bytes / page.f16_bytes);
  const evicted = page.tokens.filter((token) => token.tiers.evicted).length;
  id("view-summary").textContent = `${page.tokens.length} tokens (${page.prompt_tokens} of the prompt) at budget `
    + `${page.budget.toFixed(2)}: ${bytes(page.bytes)}, ${share} % of F16; ${evicted} tokens evicted in at least one head. `
    + "Behind a token is the share of heads in each tier; the line under it grows with its attribution.";
}

function fillLayers(page) {
  const select = id("view-layer");
  if (select.options.length === page.num_layers + 1) return;
  const layers = Array.from({ length: page.num_layers }, (_, layer) => new Option(`layer ${layer}`, String(layer)));
  select.replaceChildren(new Option("all, averaged", ""), ...layers);
}

function clear() {
  state.page = null;
  for (const name of ["view-text", "view-key", "view-summary", "view-token"]) id(name).replaceChildren();
}

async function load() {
  state.shown = state.request;
  // A later question overtakes this one: at another budget each is work for the engine, which stops
  // when nobody waits.
  state.asking?.abort();
  // The text of another request must not stand under this one's name.
  if (state.page?.id !== state.request) clear();
  if (!state.enabled || !state.request) return;
  const asking = state.asking = new AbortController();
  const query = new URLSearchParams();
  if (id("view-layer").value) query.set("layer", id("view-layer").value);
  if (state.budget !== null) query.set("budget", state.budget);
  id("view-budget-value").textContent = state.budget === null ? "as asked" : state.budget.toFixed(2);
  id("view-text").setAttribute("aria-busy", "true");
  try {
    const page = await json(`/debug/kv/${encodeURIComponent(state.request)}?${query}`, asking.signal);
    if (asking.signal.aborted) return;
    state.page = page;
    fillLayers(page);
    draw();
  } catch (error) {
    if (asking.signal.aborted) return;
    id("view-summary").textContent = error.message;
    state.shown = "";
  } finally {
    if (!asking.signal.aborted) id("view-text").removeAttribute("aria-busy");
  }
}

/// Asks what is kept, and shows what is chosen then: another request, if the old one is gone.
async function list() {
  const { requests } = await json("/debug/kv");
  const options = requests.map(({ id: request, tokens, budget }) =>
    new Option(`${request.slice(0, 17)}: ${tokens} tokens, budget ${budget.toFixed(2)}`, request));
  id("view-request").replaceChildren(...(options.length ? options : [new Option("none yet", "")]));
  if (!requests.some((request) => request.id === state.request)) state.request = requests[0]?.id ?? "";
  id("view-request").value = state.request;
  if (state.request !== state.shown) await load();
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
      if (enabled) list().catch(() => {});
    },
    /// Shows a request that has just ended, as it was asked.
    async show(request) {
      if (!state.enabled) return;
      state.request = request;
      state.budget = null;
      await list();
    },
  };
}
