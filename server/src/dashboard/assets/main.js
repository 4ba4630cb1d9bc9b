// Polls the server once a second and draws what it says.

import { ask, refusal, startKeys } from "./api.js";
import { bitsColour, drawLines, drawStack, key, tierBits } from "./charts.js";
import { bytes, latencies, number, percentile, rate, short } from "./figures.js";
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

function gauges(poll) {
  return poll.state.gauges;
}

/// The poll that was the last one `seconds` before `at`, or the first.
function pollBefore(at, seconds) {
  const found = polls.findLast((poll) => poll.at <= at - seconds);
  return found ?? polls[0];
}

function latency(poll, name, share) {
  const before = pollBefore(poll.at, RECENT);
  return percentile(poll.state.histograms[name], before === poll ? null : before.state.histograms[name], share);
}

/// What is drawn of a poll, worked out once when it comes.
function figures(poll, before) {
  const counter = (name) => rate(
    poll.state.counters[name] ?? 0, before?.state.counters[name], before ? poll.at - before.at : 0);
  const tiers = { ...(gauges(poll).keepwell_kv_bytes ?? {}) };
  // What is cached is to be had, too.
  const free = (tiers.free ?? 0) + (tiers.cached ?? 0);
  delete tiers.free;
  delete tiers.cached;
  return {
    tiers,
    free,
    live: Object.values(tiers).reduce((sum, value) => sum + value, 0),
    generated: counter("vllm:generation_tokens_total"),
    prompt: counter("vllm:prompt_tokens_total"),
    ttft: [latency(poll, "ttft", 0.5), latency(poll, "ttft", 0.99)],
    itl: [latency(poll, "itl", 0.5), latency(poll, "itl", 0.99)],
  };
}


function drawTiles(poll) {
  const { figures } = poll;
  const process = gauges(poll).process_resident_memory_bytes ?? 0;
  const parts = gauges(poll).keepwell_memory_bytes ?? {};
  id("tile-tokens").textContent = number(figures.generated);
  id("tile-queue").textContent =
    `${gauges(poll)["vllm:num_requests_running"] ?? 0}, ${gauges(poll)["vllm:num_requests_waiting"] ?? 0}`;
  id("tile-kv").textContent = bytes(figures.live);
  id("tile-kv-share").textContent = `KV cache, of ${bytes(figures.live + figures.free)}`;
  id("tile-ttft").textContent = latencies(figures.ttft);
  id("tile-itl").textContent = latencies(figures.itl);
  id("tile-memory").textContent = bytes(process);
  id("tile-memory-parts").textContent = `process; weights ${bytes(parts.weights ?? 0)}`;
}

function drawCharts() {
  const now = polls.at(-1).at;
  const ages = polls.map((poll) => now - poll.at);
  const shown = Math.min(WINDOW, Math.max(FIRST_WINDOW, ages[0]));
  const of = (name, colour, value) => ({ name, colour, values: polls.map(value) });
  const used = new Set(polls.flatMap((poll) =>
    Object.entries(poll.figures.tiers).filter(([, value]) => value > 0).map(([tier]) => tier)));
  const tiers = [...used].sort((a, b) => tierBits(a) - tierBits(b)).map((tier) =>
    of(tier, bitsColour(tierBits(tier)), (poll) => poll.figures.tiers[tier] ?? 0));
  const component = (name) => (poll) => gauges(poll).keepwell_memory_bytes?.[name] ?? 0;
  const rest = (poll) => Math.max(0, (gauges(poll).process_resident_memory_bytes ?? 0)
    - component("weights")(poll) - component("kv_cache")(poll));
  const gauge = (name) => (poll) => gauges(poll)[name] ?? 0;
  const draw = (name, how, series, format) => {
    key(id(`key-${name}`), series);
    how(id(`chart-${name}`), series, ages, shown, format);
  };
  draw("kv", drawStack, tiers, bytes);
  draw("memory", drawStack, [
    of("weights", css("s0"), component("weights")),
    of("KV pages touched", css("s2"), component("kv_cache")),
    of("rest of the process", css("line"), rest),
  ], bytes);
  draw("tokens", drawLines, [
    of("generated", css("s0"), (poll) => poll.figures.generated),
    of("prompt", css("s1"), (poll) => poll.figures.prompt),
  ], number);
  draw("queue", drawLines, [
    of("running", css("s0"), gauge("vllm:num_requests_running")),
    of("waiting", css("s1"), gauge("vllm:num_requests_waiting")),
  ], number);
  for (const name of ["ttft", "itl"]) {
    draw(name, drawLines, [
      of("p50", css("s0"), (poll) => poll.figures[name][0]),
      of("p99", css("s1"), (poll) => poll.figures[name][1]),
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
