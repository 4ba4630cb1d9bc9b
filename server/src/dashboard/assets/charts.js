// Small SVG charts: lines, and areas on top of each other. No library.

import { bytes } from "./figures.js";

const NS = "http://www.w3.org/2000/svg";
const MARGIN = { left: 52, right: 6, top: 6, bottom: 18 };

export function element(name, attributes, text) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/// Names with their colours.
export function key(node, series) {
  node.replaceChildren(...series.map(({ name, colour }) => {
    const entry = document.createElement("span");
    entry.className = "key";
    const swatch = document.createElement("i");
    swatch.style.background = colour;
    entry.append(swatch, name);
    return entry;
  }));
}

/// A round number at least as large as `value`: of bytes, of the unit they are shown in.
function roundUp(value, format) {
  if (!(value > 0)) return format === bytes ? 1024 : 1;
  const unit = format === bytes ? 1024 ** Math.floor(Math.log(value) / Math.log(1024)) : 1;
  const power = unit * 10 ** Math.floor(Math.log10(value / unit));
  return [1, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((step) => step >= value);
}

function frame(svg, top, format, seconds) {
  const width = svg.clientWidth || 400;
  const height = svg.clientHeight || 160;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
  const x = (age) => MARGIN.left + inner.width * (1 - age / seconds);
  const y = (value) => MARGIN.top + inner.height * (1 - value / top);
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    const at = y(top * share);
    parts.push(element("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }));
    parts.push(element("text", { x: MARGIN.left - 6, y: at + 4, "text-anchor": "end" }, format(top * share)));
  }
  for (const age of [seconds, seconds / 2, 0]) {
    const label = age === 0 ? "now" : (seconds > 120 ? `-${(age / 60).toFixed(1)} min` : `-${Math.round(age)} s`);
    const anchor = age === 0 ? "end" : age === seconds ? "start" : "middle";
    parts.push(element("text", { x: x(age), y: height - 4, "text-anchor": anchor }, label));
  }
  return { x, y, parts };
}

/// Series of `{name, colour, values}`; `ages` in seconds, one for each value. `null` is a gap.
export function drawLines(svg, series, ages, seconds, format) {
  const values = series.flatMap((one) => one.values).filter((value) => value !== null);
  const { x, y, parts } = frame(svg, roundUp(Math.max(0, ...values), format), format, seconds);
  for (const { values, colour, name } of series) {
    let path = "";
    let gap = true;
    values.forEach((value, at) => {
      if (value === null) { gap = true; return; }
      // Of no length, so that a value that stands alone is a dot.
      path += `${gap ? "M" : "L"}${x(ages[at]).toFixed(1)} ${y(value).toFixed(1)}${gap ? "h0" : ""}`;
      gap = false;
    });
    const line = element("path", { d: path, fill: "none", stroke: colour, "stroke-width": 2, "stroke-linejoin": "round", "stroke-linecap": "round" });
    line.append(element("title", {}, name));
    parts.push(line);
  }
  svg.replaceChildren(...parts);
}

/// As `drawLines`, each on top of those before it.
export function drawStack(svg, series, ages, seconds, format) {
  const sums = ages.map((_, at) => series.reduce((sum, one) => sum + one.values[at], 0));
  const { x, y, parts } = frame(svg, roundUp(Math.max(0, ...sums), format), format, seconds);
  const floor = ages.map(() => 0);
  for (const { values, colour, name } of series) {
    const under = floor.map((value, at) => `${x(ages[at]).toFixed(1)} ${y(value).toFixed(1)}`).reverse();
    values.forEach((value, at) => { floor[at] += value; });
    const over = floor.map((value, at) => `${x(ages[at]).toFixed(1)} ${y(value).toFixed(1)}`);
    if (!over.length) continue;
    const area = element("path", { class: "area", d: `M${over.join("L")}L${under.join("L")}Z`, fill: colour });
    area.append(element("title", {}, name));
    parts.push(area);
  }
  svg.replaceChildren(...parts);
}
