//! Decoded views of a head's pages, shared by the portable kernels.

use half::bf16;

use crate::{
    Arena, PageLayout, PageRef,
    page::{PageArrays, Tier},
};

/// The tokens of one (sequence, layer, KV head), decoded.
pub struct Segment {
    pub head_dim: usize,
    /// (N, D), rotated.
    pub keys: Vec<f32>,
    /// (N, D), rotated.
    pub values: Vec<f32>,
    pub positions: Vec<u32>,
}

impl Segment {
    pub fn decode(arena: &Arena, pages: &[PageRef]) -> Self {
        let layout = arena.layout();
        let head_dim = layout.head_dim;
        let num_tokens: usize = pages.iter().map(|p| usize::from(p.len)).sum();
        let mut segment = Self {
            head_dim,
            keys: vec![0.0; num_tokens * head_dim],
            values: vec![0.0; num_tokens * head_dim],
            positions: Vec::with_capacity(num_tokens),
        };
        let keys = segment.keys.chunks_exact_mut(head_dim);
        let mut vectors = keys.zip(segment.values.chunks_exact_mut(head_dim));
        for page in pages {
            let bytes = arena.read(page.page).expect("a device that answers");
            let bytes = &*bytes;
            for (index, (key, value)) in (0..usize::from(page.len)).zip(&mut vectors) {
                decode_token(layout, bytes, page.tier, index, key, value);
                segment.positions.push(position(layout, bytes, page, index));
            }
        }
        segment
    }

    pub fn len(&self) -> usize {
        self.positions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    pub fn key(&self, token: usize) -> &[f32] {
        &self.keys[token * self.head_dim..(token + 1) * self.head_dim]
    }

    pub fn value(&self, token: usize) -> &[f32] {
        &self.values[token * self.head_dim..(token + 1) * self.head_dim]
    }
}

/// Codes `keys` and `values` (N, D), rotated, into `pages`, each token in its place and tier: the
/// counterpart of [`Segment::decode`] for whoever changed them. Positions and attributions stay.
pub fn encode(arena: &mut Arena, pages: &[PageRef], keys: &[f32], values: &[f32]) {
    let layout = *arena.layout();
    let dim = layout.head_dim;
    let mut vectors = keys.chunks_exact(dim).zip(values.chunks_exact(dim));
    for page in pages {
        let mut bytes = arena.read(page.page).expect("a device that answers").into_owned();
        for (index, (key, value)) in (0..usize::from(page.len)).zip(&mut vectors) {
            encode_token(&layout, &mut bytes, page.tier, index, key, value);
        }
        arena.write(page.page, &bytes).expect("a device that answers");
    }
}

pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub fn decode_token(
    layout: &PageLayout,
    page: &[u8],
    tier: Tier,
    index: usize,
    key: &mut [f32],
    value: &mut [f32],
) {
    let (info, at) = (tier.info(), layout.arrays(tier));
    let (k, v) = codes(at, index);
    // F16 has no scale, and does not look at the byte.
    info.key.decode(&page[k], page[at.key_scales + index], key);
    info.value.decode(&page[v], page[at.value_scales + index], value);
}

pub fn encode_token(
    layout: &PageLayout,
    page: &mut [u8],
    tier: Tier,
    index: usize,
    key: &[f32],
    value: &[f32],
) {
    let (info, at) = (tier.info(), layout.arrays(tier));
    let (k, v) = codes(at, index);
    let key_scale = info.key.encode(key, &mut page[k]);
    if info.key.scale_bytes() > 0 {
        page[at.key_scales + index] = key_scale;
    }
    let value_scale = info.value.encode(value, &mut page[v]);
    if info.value.scale_bytes() > 0 {
        page[at.value_scales + index] = value_scale;
    }
}

/// Byte ranges of one token's K and V codes.
fn codes(at: &PageArrays, index: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
    let k = at.keys + index * at.key_bytes;
    let v = at.values + index * at.value_bytes;
    (k..k + at.key_bytes, v..v + at.value_bytes)
}

pub fn position(layout: &PageLayout, bytes: &[u8], page: &PageRef, index: usize) -> u32 {
    let at = layout.arrays(page.tier).positions + 2 * index;
    page.base.wrapping_add_signed(i32::from(read_u16(bytes, at) as i16))
}

pub fn set_offset(layout: &PageLayout, page: &mut [u8], tier: Tier, index: usize, offset: i16) {
    write_u16(page, layout.arrays(tier).positions + 2 * index, offset as u16);
}

pub fn attribution(layout: &PageLayout, page: &[u8], tier: Tier, index: usize) -> f32 {
    let at = layout.arrays(tier).attributions + 2 * index;
    bf16::from_bits(read_u16(page, at)).to_f32()
}

/// Rounds up or down with probabilities that keep the mean, drawn from the value itself. Rounding to
/// the nearest would swallow whatever is less than 1/512 of the sum it is added to.
pub fn to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let mixed = bits.wrapping_mul(0x9e37_79b1);
    let drawn = (mixed ^ (mixed >> 15)).wrapping_mul(0x85eb_ca77) >> 16;
    let rounded = if x.is_finite() { bits.wrapping_add(drawn) } else { bits };
    bf16::from_bits((rounded >> 16) as u16)
}

pub fn set_attribution(
    layout: &PageLayout,
    page: &mut [u8],
    tier: Tier,
    index: usize,
    attribution: f32,
) {
    let bits = to_bf16(attribution).to_bits();
    write_u16(page, layout.arrays(tier).attributions + 2 * index, bits);
}

fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn write_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_signals_add_up_although_each_is_below_the_last_bit() {
        // To the nearest, 1 + 0.001 is 1 in bf16, for ever.
        let mut sum = bf16::ONE;
        for i in 0..4000 {
            let signal = 0.001 + 1e-8 * (i * 7919 % 10_007) as f32;
            sum = to_bf16(sum.to_f32() + signal);
        }
        let expected = 1.0 + 4000.0 * 0.001_05;
        assert!((sum.to_f32() - expected).abs() < 0.1 * expected, "{sum}");
    }

    #[test]
    fn what_bf16_holds_stays_as_it_is() {
        for x in [0.0, 1.0, 3.5, 0.015_625, f32::INFINITY] {
            assert_eq!(to_bf16(x), bf16::from_f32(x));
        }
    }
}
