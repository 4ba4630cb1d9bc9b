// From the server's JSON to figures: sums, and rates and percentiles between two polls.

/// The series of a gauge or a counter that have these labels.
export function series(state, name, labels = {}) {
  const all = state.gauges[name] ?? state.counters[name] ?? [];
  return all.filter((one) => Object.entries(labels).every(([label, value]) => one.labels[label] === value));
}

export const total = (state, name, labels) =>
  series(state, name, labels).reduce((sum, one) => sum + one.value, 0);

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return `${value >= 100 || at === 0 ? Math.round(value) : value.toFixed(1)} ${units[at]}`;
}

export function number(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(0)}k`;
  return value >= 100 || Number.isInteger(value) ? String(Math.round(value)) : value.toFixed(1);
}

/// To three digits.
export const short = (value) => String(Number(value.toPrecision(3)));

/// Percentiles in milliseconds with their unit: one for all of them.
export function latencies(values) {
  if (values.includes(null)) return "-";
  const [unit, scale] = Math.max(...values) < 10_000 ? ["ms", 1] : ["s", 1e-3];
  return `${values.map((value) => short(value * scale)).join(", ")} ${unit}`;
}

/// Events per second of a counter between two polls; a server that began anew counts from 0.
export function rate(now, before, seconds) {
  if (seconds <= 0) return 0;
  return (now >= before ? now - before : now) / seconds;
}

/// A percentile (0 to 1) in milliseconds of what a histogram gained since `before`, as Prometheus'
/// histogram_quantile does it; `null` when nothing was.
export function percentile(now, before, share) {
  // A server that began anew counts from 0.
  const began = before.count <= now.count ? before : null;
  const earlier = new Map(began ? began.buckets : []);
  const count = now.count - (began ? began.count : 0);
  if (!(count > 0)) return null;
  let [low, below] = [0, 0];
  for (const [bound, cumulative] of now.buckets) {
    const reached = cumulative - (earlier.get(bound) ?? 0);
    if (reached >= share * count) {
      const inside = reached - below;
      return 1e3 * (inside > 0 ? low + (bound - low) * (share * count - below) / inside : bound);
    }
    [low, below] = [bound, reached];
  }
  return 1e3 * low;
}
