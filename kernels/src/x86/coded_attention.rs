//! Attention of some queries to a group of tokens, both in integers.

use std::ops::Range;

use super::{
    Avx512,
    coded::{Coded, STRIP},
    integer::{Outputs, WIDTH},
    query_codes::Strip,
    weights::{CodedWeights, Running, Tokens},
};
use crate::{
    Arena,
    simd::{
        Op,
        attention::{
            pieces::{Ahead, Piece, TOKENS, num_tokens},
            softmax::{Partial, Queries, Seen},
        },
    },
};

/// Shares that are asked for ahead at a time between parts of the work, beside what unpacking asks for.
const SHARES: usize = 8;

/// Some tokens, for all queries.
pub struct Group<'a> {
    pub coded: &'a mut Coded,
    pub arena: &'a Arena,
    pub pieces: &'a [Piece<'a>],
    pub ahead: Ahead<'a>,
    pub queries: &'a Queries,
    pub partial: &'a mut Partial,
}

/// A group and its queries in integers, [`STRIP`] each; weights have W bytes.
pub struct Attend<'a, 'b, S, const W: usize> {
    // Not by value: a copy of what was just written, piece by piece, waits for all of it to reach the cache.
    pub group: &'a mut Group<'b>,
    pub strips: &'a [S],
}

impl<S: Strip, const W: usize> Op<Avx512> for Attend<'_, '_, S, W> {
    type Out = ();

    #[inline(always)]
    fn run(self, simd: Avx512) {
        let Self { group, strips } = self;
        let Group { coded, arena, pieces, ahead, queries, .. } = &mut *group;
        let seen = if queries.sees_all {
            coded.len = num_tokens(pieces);
            Seen::within(&queries.visible[0])
        } else {
            coded.locate(arena, pieces)
        };
        let overlaps = |visible: &[Range<u32>]| visible.iter().any(|range| seen.overlaps(range));
        if !overlaps(&queries.visible) {
            return group.ahead.ask_rest(simd);
        }
        coded.scales(arena, pieces);
        let tokens = (*arena, *pieces);
        S::turn(simd, coded, tokens, ahead);
        ahead.ask(simd, SHARES);
        coded.interleave(simd, tokens, ahead);
        ahead.ask(simd, SHARES);
        for (i, strip) in strips.iter().enumerate() {
            let start = i * STRIP;
            if !overlaps(&group.queries.visible[start..start + strip.len()]) {
                continue;
            }
            match strip.len() {
                1 => group.strip::<S, W, 1>(simd, strip, start, seen),
                2 => group.strip::<S, W, 2>(simd, strip, start, seen),
                3 => group.strip::<S, W, 3>(simd, strip, start, seen),
                _ => group.strip::<S, W, STRIP>(simd, strip, start, seen),
            }
        }
        group.ahead.ask_rest(simd);
    }
}

impl Group<'_> {
    /// R queries from `start`.
    #[inline(always)]
    fn strip<S: Strip, const W: usize, const R: usize>(
        &mut self,
        simd: Avx512,
        strip: &S,
        start: usize,
        seen: Seen,
    ) {
        let coded = &*self.coded;
        let mut scores = [[0f32; TOKENS]; R];
        strip.dots(simd, coded, &mut scores);
        self.ahead.ask(simd, SHARES);
        let tokens = Tokens {
            len: coded.len,
            positions: coded.positions(),
            key_scales: coded.key_scales(),
            value_scales: coded.value_scales(),
        };
        let rows = start..start + R;
        let visible = &self.queries.visible[rows.clone()];
        let is_all = visible.iter().all(|visible| seen.inside(visible));
        let running = Running {
            largest: &mut self.partial.largest[rows.clone()],
            sums: &mut self.partial.sums[rows],
        };
        let scores = (&mut scores, (!is_all).then_some(visible));
        // SAFETY: a value of `Avx512` proves the features.
        let (weights, factors) = unsafe { tokens.weigh::<W, R>(simd, scores, running) };
        self.ahead.ask(simd, SHARES);
        self.values(start, &weights, &factors);
    }

    #[inline(always)]
    fn values<const W: usize, const R: usize>(
        &mut self,
        start: usize,
        weights: &CodedWeights<W, R>,
        factors: &[f32; R],
    ) {
        let Partial { stride, out, .. } = &mut *self.partial;
        let Coded { values, len, .. } = &*self.coded;
        for (i, values) in values.chunks_exact(TOKENS).enumerate() {
            let out = &mut out[start * *stride..];
            let mut outputs = Outputs { out, stride: *stride, channel: i * WIDTH, factors };
            // SAFETY: a value of `Avx512` proves the features.
            unsafe { outputs.add(weights, values, *len) };
        }
    }
}
