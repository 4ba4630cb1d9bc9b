// The dashboard in a headless Chromium, against a server with a real model.
//
//     node check.mjs http://127.0.0.1:8000 http://127.0.0.1:8001 [folder for screenshots]
//
// Both servers must run with --debug-kv, the second one with the API key in DASHBOARD_KEY. CHROMIUM
// names the browser, DASHBOARD_FILES a folder whose files are served instead of those in the binary
// (to work on them without building).

import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [base, guarded, shots] = process.argv.slice(2);
const key = process.env.DASHBOARD_KEY;
const MAX_WEIGHT = 300_000;
const MAX_FIRST_PAINT_MS = 1000;
/// The machine may be busy with something else.
const PATIENCE_MS = 120_000;
const STORY = "It was a quiet morning in the harbour town, and the fishing boats had not yet left. "
  + "The keeper of the lighthouse wrote one number into the book, 7351, as he did every day. ";
const PROMPT = `${STORY.repeat(9)}Which number did the keeper of the lighthouse write into the book?`;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox"],
});
const complaints = [];
/// The browser's own line for an answer that the test waits for.
const REFUSED = /the server responded with a status of 401/;

async function open(options) {
  const page = await browser.newPage(options);
  page.setDefaultTimeout(PATIENCE_MS);
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  if (process.env.DASHBOARD_FILES) {
    await page.route(/\/dashboard(\/assets\/.*)?$/, (route) => {
      const name = new URL(route.request().url()).pathname.split("/").pop();
      const file = name === "dashboard" ? "page.html" : name;
      route.fulfill({ path: join(process.env.DASHBOARD_FILES, file) });
    });
  }
  return page;
}

async function shoot(page, name) {
  if (!shots) return;
  mkdirSync(shots, { recursive: true });
  await page.screenshot({ path: join(shots, `${name}.png`), fullPage: true });
}

async function text(page, selector) {
  return (await page.textContent(selector)).trim();
}

/// Opens the page; its weight and first paint before it asks for anything else.
async function load(options) {
  const page = await open(options);
  let weight = 0;
  const sizes = [];
  page.on("response", (response) => {
    const { pathname } = new URL(response.url());
    assert.equal(response.status(), 200, pathname);
    assert.equal(new URL(response.url()).origin, new URL(base).origin);
    if (pathname !== "/dashboard/state") sizes.push(response.body().then((body) => { weight += body.length; }));
  });
  await page.goto(`${base}/dashboard`, { waitUntil: "load" });
  await page.waitForFunction(() => document.querySelector("#server").textContent.includes("context"));
  await Promise.all(sizes);
  const paint = await page.evaluate(() =>
    performance.getEntriesByName("first-contentful-paint")[0].startTime);
  page.removeAllListeners("response");
  return { page, weight, paint };
}

/// The machine may be busy with something else: the best of five first paints counts.
async function loads(options) {
  const paints = [];
  for (;;) {
    const { page, weight, paint } = await load(options);
    paints.push(Math.round(paint));
    if (paint >= MAX_FIRST_PAINT_MS && paints.length < 5) {
      await page.close();
      continue;
    }
    assert.ok(weight < MAX_WEIGHT, `${weight} bytes`);
    assert.ok(paint < MAX_FIRST_PAINT_MS, `first paint after ${paints} ms`);
    console.log(`loads: ${weight} bytes, first paint after ${paints.at(-1)} ms`);
    return page;
  }
}

/// Figures move while requests run.
async function updates(page) {
  const body = { prompt: PROMPT, max_tokens: 300, ignore_eos: true, kv_cache: { budget: 0.28 } };
  const ask = () => fetch(`${base}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  }).then((answer) => answer.json());
  const asked = [ask(), ask(), ask()];
  await page.waitForSelector("#requests progress");
  await page.waitForFunction(() => Number(document.querySelector("#tile-tokens").textContent) > 0);
  await page.waitForFunction(() => document.querySelectorAll("#chart-kv path").length >= 2);
  const kv = await text(page, "#tile-kv");
  assert.notEqual(kv, "0 B");
  assert.match(await text(page, "#requests"), /decode|prefill/);
  await shoot(page, "load-light");
  // Of the last minute: on a slow machine the answers take longer.
  for (const tile of ["ttft", "itl"]) {
    await page.waitForFunction((name) =>
      /^[\d.]+, [\d.]+ m?s$/.test(document.querySelector(`#tile-${name}`).textContent), tile);
  }
  const ttft = await text(page, "#tile-ttft");
  for (const answer of await Promise.all(asked)) assert.equal(answer.usage.completion_tokens, 300);
  await page.waitForFunction(() => document.querySelector("#requests").textContent.includes("nothing runs"));
  console.log(`updates: ${kv} at load, TTFT ${ttft}`);
}

/// Says something in the playground; gives the question sent and the answer shown.
async function say(page, words) {
  const turns = await page.locator("#chat p").count();
  await page.fill("#prompt", words);
  const [request] = await Promise.all([
    page.waitForRequest((request) => request.url().endsWith("/v1/chat/completions")),
    page.click("#send"),
  ]);
  await page.waitForFunction(() => document.querySelector("#cost").textContent.includes("% of F16"));
  await page.waitForSelector("#stop", { state: "hidden" });
  assert.equal(await page.locator("#chat p").count(), turns + 2);
  return { asked: request.postDataJSON(), answer: await page.textContent("#chat p:last-child") };
}

async function chats(page) {
  await page.fill("#max-tokens", "24");
  await page.locator("#budget").fill("0.28");
  assert.equal(await text(page, "#budget-value"), "0.28");
  const first = await say(page, PROMPT);
  assert.ok(first.answer.length > 0);
  assert.deepEqual(first.asked.kv_cache, { budget: 0.28 });
  // What was said before is shown, and sent along at the budget of now.
  await page.locator("#budget").fill("0.4");
  const second = await say(page, "And where does the keeper work?");
  assert.deepEqual(second.asked.kv_cache, { budget: 0.4 });
  assert.deepEqual(second.asked.messages, [
    { role: "user", content: PROMPT },
    { role: "assistant", content: first.answer },
    { role: "user", content: "And where does the keeper work?" },
  ]);
  await shoot(page, "chat-light");
  // What gets no answer is given back, and no turn.
  const contentType = "text/event-stream";
  const body = 'data: {"error": {"message": "no, not this"}}\n\n';
  await page.route("**/v1/chat/completions", (route) => route.fulfill({ contentType, body }), { times: 1 });
  await page.fill("#prompt", "Once more?");
  await page.click("#send");
  await page.waitForFunction(() => document.querySelector("#cost").textContent === "no, not this");
  assert.equal(await page.inputValue("#prompt"), "Once more?");
  assert.equal(await page.locator("#chat p").count(), 4);
  await page.locator("#budget").fill("0.28");
  await page.click("#anew");
  assert.equal(await page.locator("#chat p").count(), 0);
  assert.ok(!await page.isVisible("#anew"));
  const anew = await say(page, PROMPT);
  assert.equal(anew.asked.messages.length, 1);
  console.log(`chats: ${await text(page, "#cost")}`);
}

/// Percentiles of the last minute are none of the time before the page was opened.
async function startsEmpty() {
  const page = await open({ viewport: { width: 1280, height: 900 } });
  let polls = 0;
  let release;
  const held = new Promise((resolve) => { release = resolve; });
  await page.route("**/dashboard/state", async (route) => {
    polls += 1;
    if (polls > 1) await held;
    await route.continue();
  });
  await page.goto(`${base}/dashboard`);
  const latencies = async () => [await text(page, "#tile-ttft"), await text(page, "#tile-itl")];
  await page.waitForFunction(() => document.querySelector("#server").textContent.includes("context"));
  assert.deepEqual(await latencies(), ["-", "-"]);
  release();
  await page.waitForResponse("**/dashboard/state");
  assert.deepEqual(await latencies(), ["-", "-"]);
  await page.unrouteAll({ behavior: "ignoreErrors" });
  await page.close();
  console.log("starts empty: no latency of before");
}

/// Every tier that the server has is in the page's table, in a colour that no other one has.
async function tellsTiersApart(page) {
  const near = await page.evaluate(async () => {
    const { TIERS, tierColour } = await import("/dashboard/assets/tiers.js");
    const state = await (await fetch("/dashboard/state")).json();
    const names = state.counters.keepwell_kv_entries_demoted_total.map(({ labels }) => labels.tier);
    const unknown = names.filter((name) => !TIERS.includes(name));
    const points = TIERS.map((name) => {
      const [, light, chroma, hue] = /oklch\(([\d.]+) ([\d.]+) ([\d.]+)/.exec(tierColour(name)).map(Number);
      const angle = hue * Math.PI / 180;
      return [light, chroma * Math.cos(angle), chroma * Math.sin(angle)];
    });
    const distances = points.flatMap((a, at) => points.slice(0, at).map((b) =>
      Math.hypot(...a.map((value, axis) => value - b[axis]))));
    return { unknown, num: names.length, least: Math.min(...distances) };
  });
  assert.deepEqual(near.unknown, []);
  // Of OKLab, in which 0.02 can just be seen.
  assert.ok(near.num > 30 && near.least > 0.06, JSON.stringify(near));
  console.log(`tells ${near.num} tiers apart`);
}

const hover = async (page) => {
  await page.hover("h1");
  await page.hover("#view-request");
};

/// A request that was kept after the page was opened is shown once the list is looked at.
async function showsTheFirst(page) {
  await hover(page);
  await page.waitForFunction(() => document.querySelectorAll("#view-text span").length > 300);
  assert.match(await text(page, "#view-request option:checked"), /tokens, budget 0.28/);
  console.log("shows the first request that was kept");
}

/// When as many others were kept as the server keeps, the newest takes the place of the one shown.
async function followsTheKept(page) {
  const shown = await page.inputValue("#view-request");
  let newest;
  for (let nth = 0; nth < 8; nth += 1) {
    const answer = await fetch(`${base}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        prompt: `${PROMPT} The other number is ${nth}00.`, max_tokens: 2, kv_cache: { budget: 0.28 },
      }),
    });
    newest = (await answer.json()).id;
  }
  await hover(page);
  await page.waitForFunction(() => document.querySelector("#view-text").textContent.includes("is 700."));
  assert.equal(await page.inputValue("#view-request"), newest);
  assert.notEqual(newest, shown);
  console.log("follows what is kept");
}

/// What the attribution view says of every token.
async function colours(page) {
  return page.$$eval("#view-text span", (spans) =>
    spans.map((span) => [span.textContent, span.className.replace(" chosen", ""), span.style.background]));
}

async function showsWhatWasKept(page) {
  await page.waitForFunction(() => document.querySelectorAll("#view-text span").length > 300);
  const asked = await colours(page);
  const shown = asked.map(([token]) => token).join("");
  assert.ok(shown.includes("7351, as he did every day") || shown.includes("keeper of the lighthouse"), shown.slice(0, 200));
  const summary = await text(page, "#view-summary");
  await page.hover("#view-text span:nth-child(200)");
  assert.match(await text(page, "#view-token"), /position 199\): [\d.]+ bits; held in \d+ of 90 heads \(.*\), there attribution [\d.]+ times/);
  await shoot(page, "kept-light");

  await page.locator("#view-budget").fill("0.12");
  await page.waitForFunction((before) => {
    const now = document.querySelector("#view-summary").textContent;
    return now !== before && now.includes("budget 0.12");
  }, summary);
  // What is overtaken is given up: the engine need not finish it.
  const isOvertaken = (request) => request.url().endsWith("budget=0.2");
  await page.route((url) => url.href.endsWith("budget=0.2"), () => {});
  const asking = page.waitForRequest(isOvertaken);
  const failed = page.waitForEvent("requestfailed", isOvertaken);
  await page.locator("#view-budget").fill("0.2");
  await asking;
  await page.locator("#view-budget").fill("0.12");
  assert.match((await failed).failure().errorText, /ABORTED/);
  await page.waitForFunction(() => document.querySelector("#view-summary").textContent.includes("budget 0.12"));
  const squeezed = await colours(page);
  // The last token is computed only in the replay.
  assert.ok(squeezed.length >= asked.length && squeezed.length <= asked.length + 1);
  const changed = asked.filter(([, , colour], at) => squeezed[at][2] !== colour).length;
  assert.ok(changed > asked.length / 4, `${changed} of ${asked.length} tokens changed`);
  await shoot(page, "squeezed-light");

  await page.selectOption("#view-layer", "7");
  await page.waitForFunction((before) => {
    const colours = [...document.querySelectorAll("#view-text span")].map((span) => span.style.background);
    return colours.join() !== before;
  }, squeezed.map(([, , colour]) => colour).join());
  await page.selectOption("#view-colour", "score");
  const alphas = await page.$$eval("#view-text span", (spans) => new Set(spans.map((span) => span.style.getPropertyValue("--alpha"))).size);
  assert.ok(alphas > 5, `${alphas} shades`);
  console.log(`shows what was kept: ${changed} of ${asked.length} tokens changed with the budget`);
}

/// Nothing sticks out to the right.
async function fits(options, name) {
  const page = await open(options);
  await page.goto(`${base}/dashboard`);
  await page.waitForFunction(() => document.querySelectorAll("#view-text span").length > 300);
  await page.waitForTimeout(2500);
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(width <= options.viewport.width, `${name}: the page is ${width} pixels wide`);
  await shoot(page, name);
  await page.close();
}

/// A server with keys asks for one, once, and is then as usable as one without.
async function asksForTheKey() {
  const page = await open({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
  const alert = (said) => page.waitForFunction((part) =>
    document.querySelector("#key-message").textContent.includes(part), said);
  const give = async (typed) => {
    await page.fill("#key", typed);
    await page.press("#key", "Enter");
  };
  await page.goto(`${guarded}/dashboard`);
  await page.waitForSelector("#key-form");
  assert.ok(!await page.isVisible("main") && !await page.isVisible("#key-message"));
  await shoot(page, "key-light");
  await give("k\u00e9y");
  await alert("letters, digits and signs");
  await give("wrong");
  await alert("not known");
  await give(key);
  await page.waitForFunction(() => document.querySelector("#server").textContent.includes("context"));
  assert.ok(await page.isVisible("main") && !await page.isVisible("#key-form"));
  await chats(page);
  await page.waitForFunction(() => document.querySelectorAll("#view-text span").length > 300);
  // The tab keeps it; forgetting it locks again.
  await page.reload();
  await page.waitForFunction(() => document.querySelector("#server").textContent.includes("context"));
  assert.ok(!await page.isVisible("#key-form"));
  await page.click("#forget-key");
  await page.waitForSelector("#key-form");
  await page.close();
  const refused = complaints.filter((line) => REFUSED.test(line));
  assert.ok(refused.length >= 3 && refused.length <= 6, `${refused.length} refusals`);
  refused.forEach((line) => complaints.splice(complaints.indexOf(line), 1));
  console.log("asks for the key: refuses a wrong one, keeps the right one, forgets it");
}

const page = await loads({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
await updates(page);
await startsEmpty();
await tellsTiersApart(page);
await showsTheFirst(page);
await chats(page);
await showsWhatWasKept(page);
await followsTheKept(page);
await fits({ viewport: { width: 1280, height: 900 }, colorScheme: "dark" }, "dark");
for (const colorScheme of ["light", "dark"]) {
  const phone = { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, colorScheme };
  await fits(phone, `phone-${colorScheme}`);
}
await asksForTheKey();

await browser.close();
assert.deepEqual(complaints, []);
console.log("the dashboard works");
