// The tiers in order, and a colour for each: the only table of them on the page.

/// Bits of keys and of values.
const FORMATS = [1, 2, 3, 4, 5, 8];

const pairs = FORMATS.flatMap((key) => FORMATS.map((value) => ({ key, value })));
pairs.sort((a, b) => a.key + a.value - b.key - b.value || a.key - b.key);

/// From few bits to many; of as many, from few to many for keys.
export const TIERS = [...pairs.map(({ key, value }) => `k${key}v${value}`), "f16"];

/// What is no tier of ours counts as uncompressed.
const rank = (name) => (TIERS.includes(name) ? TIERS.indexOf(name) : TIERS.length - 1);

export const byBits = (a, b) => rank(a) - rank(b);

/// The hue moves with the bits; neighbours, and those of like hue, differ in lightness, as far as
/// the cards of both themes allow.
const LIGHTNESS = [0.5, 0.74, 0.58, 0.82, 0.66];

export function tierColour(name, alpha = 1) {
  const hue = 350 - 300 * rank(name) / (TIERS.length - 1);
  return `oklch(${LIGHTNESS[rank(name) % LIGHTNESS.length]} .13 ${hue.toFixed(1)} / ${alpha})`;
}
