// Polls the server once a second and draws what it says.

import { ask, refusal, startKeys } from "./api.js";
import { drawLines, drawStack, key } from "./charts.js";
import { bytes, latencies, number, percentile, rate, series, short, total } from "./figures.js";
import { byBits, tierColour } from "./tiers.js";
import { startPlayground } from "./playground.js";
import { startAttribution } from "./attribution.js";

const POLL_MS = 1000;
/// Seconds that the charts show: the first at once, growing to the last.
const [FIRST_WINDOW, WINDOW] = [60, 300];
/// Seconds that percentiles are taken over.
const RECENT = 60;

const id = (name) => document.getElementById(name);
const css = (name) => `var(--${name})`;

/// Polls with the time they came at, in seconds, oldest first.
const polls = [];
let attribution;

/// The poll that was the last one `seconds` before `at`, or the first.
function pollBefore(at, seconds) {
  const found = polls.findLast((poll) => poll.at <= at - seconds);
  return found ?? polls[0];
}

/// `null` at the first poll: what the server counted before it is not recent.
function latency(poll, name, share) {
  const before = pollBefore(poll.at, RECENT);
  if (before === poll) return null;
  return percentile(poll.state.histograms[name], before.state.histograms[name], share);
}

/// What is drawn of a poll, worked out once when it comes.
function figures(poll, before) {
  const { at, state } = poll;
  const counter = (name) =>
    (before ? rate(total(state, name), total(before.state, name), at - before.at) : 0);
  const kv = (name) => total(state, "keepwell_kv_bytes", { state: name });
  const component = (name) => total(state, "keepwell_memory_bytes", { component: name });
  const [live, cached, free] = ["live", "cached", "free"].map(kv);
  const touched = component("kv_cache");
  const recent = (name) => [0.5, 0.99].map((share) => latency(poll, name, share));
  return {
    tiers: Object.fromEntries(series(state, "keepwell_kv_bytes", { state: "live" })
      .map(({ labels, value }) => [labels.tier, value])),
    live,
    cached,
    arena: live + cached + free,
    // Pages that were used and are no more keep their memory.
    idle: Math.max(0, touched - live - cached),
    weights: component("weights"),
    rest: component("rest"),
    resident: total(state, "process_resident_memory_bytes"),
    device: total(state, "keepwell_device_memory_bytes"),
    running: total(state, "vllm:num_requests_running"),
    waiting: total(state, "vllm:num_requests_waiting"),
    generated: counter("vllm:generation_tokens_total"),
    prompt: counter("vllm:prompt_tokens_total"),
    ttft: recent("ttft"),
    itl: recent("itl"),
  };
}

function drawTiles({ figures }) {
  id("tile-tokens").textContent = number(figures.generated);
  id("tile-queue").textContent = `${figures.running}, ${figures.waiting}`;
  id("tile-kv").textContent = bytes(figures.live);
  id("tile-kv-share").textContent = `KV cache, of ${bytes(figures.arena)}; prefixes ${bytes(figures.cached)}`;
  id("tile-ttft").textContent = latencies(figures.ttft);
  id("tile-itl").textContent = latencies(figures.itl);
  const { device, resident } = figures;
  id("tile-memory").textContent = bytes(device || resident);
  const whose = device ? `in use on the device, process ${bytes(resident)}` : "process";
  id("tile-memory-parts").textContent = `${whose}; weights ${bytes(figures.weights)}`;
}

function drawCharts() {
  const now = polls.at(-1).at;
  const ages = polls.map((poll) => now - poll.at);
  const shown = Math.min(WINDOW, Math.max(FIRST_WINDOW, ages[0]));
  const of = (name, colour, value) =>
    ({ name, colour, values: polls.map((poll) => value(poll.figures)) });
  const used = new Set(polls.flatMap(({ figures }) =>
    Object.entries(figures.tiers).filter(([, value]) => value > 0).map(([tier]) => tier)));
  const tiers = [...used].sort(byBits).map((tier) =>
    of(tier, tierColour(tier), (figures) => figures.tiers[tier] ?? 0));
  const draw = (name, how, series, format) => {
    key(id(`key-${name}`), series);
    how(id(`chart-${name}`), series, ages, shown, format);
  };
  draw("kv", drawStack, tiers, bytes);
  draw("memory", drawStack, [
    of("weights", css("s0"), (figures) => figures.weights),
    of("KV of requests", css("s2"), (figures) => figures.live),
    of("cached prefixes", css("s3"), (figures) => figures.cached),
    of("idle KV pages", css("idle"), (figures) => figures.idle),
    of("rest", css("line"), (figures) => figures.rest),
  ], bytes);
  draw("tokens", drawLines, [
    of("generated", css("s0"), (figures) => figures.generated),
    of("prompt", css("s1"), (figures) => figures.prompt),
  ], number);
  draw("queue", drawLines, [
    of("running", css("s0"), (figures) => figures.running),
    of("waiting", css("s1"), (figures) => figures.waiting),
  ], number);
  for (const name of ["ttft", "itl"]) {
    draw(name, drawLines, [
      of("p50", css("s0"), (figures) => figures[name][0]),
      of("p99", css("s1"), (figures) => figures[name][1]),
    ], short);
  }
}

function row(seq) {
  const row = document.createElement("tr");
  const cell = (content) => { const td = document.createElement("td"); td.append(content); row.append(td); };
  const progress = document.createElement("progress");
  progress.max = seq.prompt_tokens + seq.max_tokens;
  progress.value = seq.computed_tokens;
  const waits = ["sequences", "memory", "step", "preempted"].includes(seq.stage);
  cell(String(seq.id));
  cell(waits ? `waits: ${seq.stage}` : seq.stage);
  cell(progress);
  cell(String(seq.prompt_tokens));
  cell(`${seq.generated_tokens} / ${seq.max_tokens}`);
  const lowered = seq.budget < seq.asked_budget ? ` (asked ${seq.asked_budget.toFixed(2)})` : "";
  cell(seq.budget.toFixed(2) + lowered);
  cell(bytes(seq.kv_bytes));
  cell(seq.f16_bytes ? `${Math.round(100 * seq.kv_bytes / seq.f16_bytes)} %` : "-");
  return row;
}

function drawRequests(sequences) {
  const rows = sequences.slice(0, 100).map(row);
  if (!rows.length) {
    const empty = document.createElement("tr");
    const cell = document.createElement("td");
    cell.colSpan = 8;
    cell.className = "note";
    cell.textContent = "nothing runs";
    empty.append(cell);
    rows.push(empty);
  }
  id("requests").replaceChildren(...rows);
}

function take(state) {
  const poll = { at: performance.now() / 1e3, state };
  const before = polls.at(-1);
  polls.push(poll);
  poll.figures = figures(poll, before);
  while (polls.length > 2 && poll.at - polls[0].at > WINDOW) polls.shift();
  const { model, version, max_model_len, debug_kv } = state.server;
  id("server").textContent = `${model}, context ${max_model_len}, version ${version}`;
  drawTiles(poll);
  drawCharts();
  drawRequests(state.sequences);
  attribution.enable(debug_kv);
}

async function poll() {
  try {
    const answer = await ask("/dashboard/state", { timeout: 10_000 });
    if (!answer.ok) throw new Error(await refusal(answer));
    take(await answer.json());
    id("connection").textContent = "";
  } catch (error) {
    id("connection").textContent = `no answer from the server (${error.message})`;
  }
  setTimeout(poll, POLL_MS);
}

startKeys();
attribution = startAttribution();
startPlayground((request) => attribution.show(request));
poll();
