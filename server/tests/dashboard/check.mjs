// The dashboard in a headless Chromium, against a server with a real model.
//
//     node check.mjs http://127.0.0.1:8000 [folder for screenshots]
//
// The server must run with --debug-kv. CHROMIUM names the browser, DASHBOARD_FILES a folder whose
// files are served instead of those in the binary (to work on them without building).

import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [base, shots] = process.argv.slice(2);
const MAX_WEIGHT = 300_000;
const MAX_FIRST_PAINT_MS = 1000;
const STORY = "It was a quiet morning in the harbour town, and the fishing boats had not yet left. "
  + "The keeper of the lighthouse wrote one number into the book, 7351, as he did every day. ";
const PROMPT = `${STORY.repeat(9)}Which number did the keeper of the lighthouse write into the book?`;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox"],
});
const complaints = [];

async function open(options) {
  const page = await browser.newPage(options);
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

/// The page's weight and first paint, before it asks for anything else.
async function loads(page) {
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
  assert.ok(weight < MAX_WEIGHT, `${weight} bytes`);
  assert.ok(paint < MAX_FIRST_PAINT_MS, `first paint after ${paint} ms`);
  console.log(`loads: ${weight} bytes, first paint after ${Math.round(paint)} ms`);
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
  await page.waitForSelector("#requests progress", { timeout: 20_000 });
  await page.waitForFunction(() => Number(document.querySelector("#tile-tokens").textContent) > 0);
  await page.waitForFunction(() => document.querySelectorAll("#chart-kv path").length >= 2);
  const kv = await text(page, "#tile-kv");
  assert.notEqual(kv, "0 B");
  assert.match(await text(page, "#requests"), /decode|prefill/);
  await shoot(page, "load-light");
  for (const answer of await Promise.all(asked)) assert.equal(answer.usage.completion_tokens, 300);
  await page.waitForFunction(() => document.querySelector("#requests").textContent.includes("nothing runs"));
  assert.match(await text(page, "#tile-ttft"), /^[\d.]+, [\d.]+ ms$/);
  assert.match(await text(page, "#tile-itl"), /^[\d.]+, [\d.]+ ms$/);
  console.log(`updates: ${kv} at load, TTFT ${await text(page, "#tile-ttft")}`);
}

async function chats(page) {
  await page.fill("#prompt", PROMPT);
  await page.fill("#max-tokens", "24");
  await page.locator("#budget").fill("0.28");
  assert.equal(await text(page, "#budget-value"), "0.28");
  await page.click("#send");
  await page.waitForFunction(() => document.querySelector("#cost").textContent.includes("% of F16"),
    null, { timeout: 60_000 });
  assert.ok((await text(page, "#answer")).length > 0);
  console.log(`chats: ${await text(page, "#cost")}`);
}

/// What the attribution view says of every token.
async function colours(page) {
  return page.$$eval("#view-text span", (spans) =>
    spans.map((span) => [span.textContent, span.className.replace(" chosen", ""), span.style.getPropertyValue("--hue")]));
}

async function showsWhatWasKept(page) {
  await page.waitForFunction(() => document.querySelectorAll("#view-text span").length > 300, null, { timeout: 30_000 });
  const asked = await colours(page);
  const shown = asked.map(([token]) => token).join("");
  assert.ok(shown.includes("7351, as he did every day") || shown.includes("keeper of the lighthouse"), shown.slice(0, 200));
  const summary = await text(page, "#view-summary");
  await page.hover("#view-text span:nth-child(200)");
  assert.match(await text(page, "#view-token"), /position 199\): [\d.]+ bits, attribution [\d.]+ times/);
  await shoot(page, "kept-light");

  await page.locator("#view-budget").fill("0.12");
  await page.waitForFunction((before) => {
    const now = document.querySelector("#view-summary").textContent;
    return now !== before && now.includes("budget 0.12");
  }, summary, { timeout: 60_000 });
  const squeezed = await colours(page);
  // The last token is computed only in the replay.
  assert.ok(squeezed.length >= asked.length && squeezed.length <= asked.length + 1);
  const changed = asked.filter(([, , hue], at) => squeezed[at][2] !== hue).length;
  assert.ok(changed > asked.length / 4, `${changed} of ${asked.length} tokens changed`);
  await shoot(page, "squeezed-light");

  await page.selectOption("#view-layer", "7");
  await page.waitForFunction((before) => {
    const hues = [...document.querySelectorAll("#view-text span")].map((span) => span.style.getPropertyValue("--hue"));
    return hues.join() !== before;
  }, squeezed.map(([, , hue]) => hue).join(), { timeout: 20_000 });
  await page.selectOption("#view-colour", "score");
  const alphas = await page.$$eval("#view-text span", (spans) => new Set(spans.map((span) => span.style.getPropertyValue("--alpha"))).size);
  assert.ok(alphas > 5, `${alphas} shades`);
  console.log(`shows what was kept: ${changed} of ${asked.length} tokens changed with the budget`);
}

const page = await open({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
await loads(page);
await updates(page);
await chats(page);
await showsWhatWasKept(page);

// Dark, on a phone: nothing may stick out to the right.
const phone = await open({ viewport: { width: 390, height: 844 }, colorScheme: "dark", isMobile: true, hasTouch: true });
await phone.goto(`${base}/dashboard`);
await phone.waitForFunction(() => document.querySelectorAll("#view-text span").length > 300, null, { timeout: 30_000 });
await phone.waitForTimeout(2500);
const width = await phone.evaluate(() => document.documentElement.scrollWidth);
assert.ok(width <= 390, `the page is ${width} pixels wide on a phone of 390`);
await shoot(phone, "phone-dark");

await browser.close();
assert.deepEqual(complaints, []);
console.log("the dashboard works");
