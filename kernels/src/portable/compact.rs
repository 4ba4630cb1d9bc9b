//! Moving tokens between slots and tiers.

use super::segment::{attribution, decode_token, set_attribution, set_offset};
use crate::{Arena, Move, PageLayout, Tier};

/// A token lifted out of its page.
struct Lifted {
    /// K and V.
    parts: [Payload; 2],
    attribution: f32,
}

/// K or V of a token.
enum Payload {
    /// The format stays: codes and scale as they are.
    Raw(Vec<u8>),
    Decoded(Vec<f32>),
}

/// See [`crate::Backend::compact`].
pub fn compact(arena: &mut Arena, moves: &[Move]) {
    let layout = *arena.layout();
    let lifted: Vec<_> = moves.iter().map(|m| lift(&layout, arena, m)).collect();
    for (m, token) in moves.iter().zip(lifted) {
        set_down(&layout, arena, m, &token);
    }
}

fn lift(layout: &PageLayout, arena: &Arena, m: &Move) -> Lifted {
    let page = arena.page(m.from.page);
    let index = usize::from(m.from.index);
    let attribution = attribution(layout, page, m.from_tier, index);
    let mut decoded = [vec![0.0; layout.head_dim], vec![0.0; layout.head_dim]];
    let [key, value] = &mut decoded;
    decode_token(layout, page, m.from_tier, index, key, value);
    let raw = |runs: [std::ops::Range<usize>; 2]| {
        Payload::Raw(runs.into_iter().flat_map(|run| page[run].iter().copied()).collect())
    };
    let runs = token_runs(layout, m.from_tier, index);
    let [stays_key, stays_value] = same_formats(m);
    let [key, value] = decoded.map(Payload::Decoded);
    let [of_key, of_value] = runs;
    let parts = [
        if stays_key { raw(of_key) } else { key },
        if stays_value { raw(of_value) } else { value },
    ];
    Lifted { parts, attribution }
}

/// Whether K and V keep their formats.
fn same_formats(m: &Move) -> [bool; 2] {
    let (from, to) = (m.from_tier.info(), m.to_tier.info());
    [from.key == to.key, from.value == to.value]
}

fn set_down(layout: &PageLayout, arena: &mut Arena, m: &Move, token: &Lifted) {
    let page = arena.page_mut(m.to.page);
    let index = usize::from(m.to.index);
    let info = m.to_tier.info();
    let runs = token_runs(layout, m.to_tier, index);
    for ((part, format), [codes, scale]) in token.parts.iter().zip([info.key, info.value]).zip(runs)
    {
        match part {
            Payload::Raw(bytes) => {
                let mut bytes = bytes.iter();
                for run in [codes, scale] {
                    page[run].iter_mut().zip(&mut bytes).for_each(|(to, from)| *to = *from);
                }
            }
            Payload::Decoded(x) => {
                let byte = format.encode(x, &mut page[codes]);
                page[scale].fill(byte);
            }
        }
    }
    set_offset(layout, page, m.to_tier, index, m.offset);
    set_attribution(layout, page, m.to_tier, index, token.attribution);
}

/// Byte ranges of codes and scale of a token's K, then of its V.
fn token_runs(layout: &PageLayout, tier: Tier, index: usize) -> [[std::ops::Range<usize>; 2]; 2] {
    let (info, at) = (tier.info(), layout.arrays(tier));
    let run = |start: usize, bytes: usize| start + index * bytes..start + (index + 1) * bytes;
    [
        [run(at.keys, at.key_bytes), run(at.key_scales, info.key.scale_bytes())],
        [run(at.values, at.value_bytes), run(at.value_scales, info.value.scale_bytes())],
    ]
}
