//! Moving tokens between slots and tiers.

use super::segment::{attribution, decode_token, encode_token, set_attribution, set_offset};
use crate::{Arena, Move, PageLayout, Tier};

/// A token lifted out of its page.
struct Lifted {
    payload: Payload,
    attribution: f32,
}

enum Payload {
    /// Same tier: the codes and scales as they are.
    Raw(Vec<u8>),
    /// Another tier: K and V, decoded.
    Decoded { key: Vec<f32>, value: Vec<f32> },
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
    let payload = if m.from_tier == m.to_tier {
        let runs = token_runs(layout, m.from_tier, index);
        Payload::Raw(runs.into_iter().flat_map(|run| page[run].iter().copied()).collect())
    } else {
        let mut key = vec![0.0; layout.head_dim];
        let mut value = vec![0.0; layout.head_dim];
        decode_token(layout, page, m.from_tier, index, &mut key, &mut value);
        Payload::Decoded { key, value }
    };
    Lifted { payload, attribution }
}

fn set_down(layout: &PageLayout, arena: &mut Arena, m: &Move, token: &Lifted) {
    let page = arena.page_mut(m.to.page);
    let index = usize::from(m.to.index);
    match &token.payload {
        Payload::Raw(bytes) => {
            let mut bytes = bytes.iter();
            for run in token_runs(layout, m.to_tier, index) {
                page[run].iter_mut().zip(&mut bytes).for_each(|(to, from)| *to = *from);
            }
        }
        Payload::Decoded { key, value } => {
            encode_token(layout, page, m.to_tier, index, key, value);
        }
    }
    set_offset(layout, page, m.to_tier, index, m.offset);
    set_attribution(layout, page, m.to_tier, index, token.attribution);
}

/// Byte ranges of a token's codes and scales.
fn token_runs(layout: &PageLayout, tier: Tier, index: usize) -> [std::ops::Range<usize>; 4] {
    let (info, at) = (tier.info(), layout.arrays(tier));
    let run = |start: usize, bytes: usize| start + index * bytes..start + (index + 1) * bytes;
    [
        run(at.keys, at.key_bytes),
        run(at.values, at.value_bytes),
        run(at.key_scales, info.key.scale_bytes()),
        run(at.value_scales, info.value.scale_bytes()),
    ]
}
