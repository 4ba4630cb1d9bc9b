//! The signals of coded tokens for a few queries, in integers: [`crate::simd::attention::signals`]
//! without tiles.

use super::{
    Avx512,
    coded::{Coded, STRIP},
    integer::{CodedQueries, dots, square_sums},
};
use crate::{
    Arena, Signal,
    portable::segment::decode_token,
    simd::{
        Op, Simd,
        attention::{
            direct::Side,
            pieces::{Ahead, Pages, Piece, TOKENS, each_group},
            signals::{Queries, Weigh},
        },
    },
};

/// From more queries on tiles are cheaper.
pub const MAX_QUERIES: usize = 2 * STRIP;
/// |v|^2 - 2 v o + |o|^2 loses what the terms have in common. Where less than this share of them is
/// left, the distance is computed from the differences.
const SMALLEST_SHARE: f32 = 1.0 / 64.0;

/// Some queries in integers, with what attention made of them.
struct Strip {
    start: usize,
    queries: CodedQueries<3>,
    outs: CodedQueries<3>,
    /// `|o|^2`
    out_squares: Vec<f32>,
}

impl Strip {
    fn new(queries: &Queries, start: usize) -> Self {
        let range =
            start * queries.head_dim..(start + STRIP).min(queries.lse.len()) * queries.head_dim;
        let out = &queries.out[range.clone()];
        let (mut coded, mut coded_outs) = <(CodedQueries<3>, CodedQueries<3>)>::default();
        // SAFETY: the caller has a value of `Avx512`, which proves the features.
        unsafe {
            coded.fill(&queries.data[range], queries.head_dim);
            coded_outs.fill(out, queries.head_dim);
        }
        let square = |out: &[f32]| out.iter().map(|o| o * o).sum();
        Self {
            start,
            queries: coded,
            outs: coded_outs,
            out_squares: out.chunks_exact(queries.head_dim).map(square).collect(),
        }
    }
}

impl Coded {
    /// Writes the signal of each token of `pages`, none of which is F16.
    pub fn signals(
        &mut self,
        simd: Avx512,
        arena: &Arena,
        pages: Pages,
        (queries, signal): (&Queries, Signal),
        out: &mut [f32],
    ) {
        let strips: Vec<_> =
            (0..queries.lse.len()).step_by(STRIP).map(|start| Strip::new(queries, start)).collect();
        let mut next = 0;
        each_group(simd, arena, pages, |pieces| {
            let mut totals = [0f32; TOKENS];
            let (coded, totals_of) = (&mut *self, &mut totals);
            simd.vectorize(Group {
                coded,
                arena,
                pieces,
                queries,
                strips: &strips,
                signal,
                totals: totals_of,
            });
            out[next..next + self.len].copy_from_slice(&totals[..self.len]);
            next += self.len;
        });
    }

    /// Squares of the levels that were turned.
    #[inline(always)]
    fn squares(&self, _: Avx512) -> [f32; TOKENS] {
        let mut squares = [0f32; TOKENS];
        // SAFETY: a value of `Avx512` proves the features.
        unsafe { square_sums(self.levels(), self.len, &mut squares) };
        squares
    }
}

/// Some tokens, for all queries.
struct Group<'a> {
    coded: &'a mut Coded,
    arena: &'a Arena,
    pieces: &'a [Piece<'a>],
    queries: &'a Queries,
    strips: &'a [Strip],
    signal: Signal,
    totals: &'a mut [f32; TOKENS],
}

impl Op<Avx512> for Group<'_> {
    type Out = ();

    #[inline(always)]
    fn run(self, simd: Avx512) {
        let Self { coded, arena, pieces, queries, strips, signal, totals } = self;
        let seen = coded.locate(arena, pieces);
        let is_seen = queries.visible.iter().any(|visible| seen.overlaps(visible));
        if !is_seen && signal != Signal::KeyNorm {
            return Ahead::new(pieces).ask_rest(simd);
        }
        coded.scales(arena, pieces);
        let mut ahead = Ahead::new(pieces);
        coded.turn(simd, (arena, pieces), Side::Keys, &mut ahead);
        if signal == Signal::KeyNorm {
            let squares = coded.squares(simd);
            for ((total, square), scale) in totals.iter_mut().zip(squares).zip(coded.key_scales()) {
                *total = 1.0 / (scale * square.sqrt()).max(f32::MIN_POSITIVE);
            }
            return ahead.ask_rest(simd);
        }
        let mut scores = [[0f32; TOKENS]; MAX_QUERIES];
        products(coded, strips, |strip| &strip.queries, &mut scores);
        ahead.ask(simd, TOKENS / 4);
        for scores in &mut scores {
            scores.iter_mut().zip(coded.key_scales()).for_each(|(score, scale)| *score *= scale);
        }
        let mut distances = [[0f32; TOKENS]; MAX_QUERIES];
        if signal == Signal::Deletion {
            coded.turn(simd, (arena, pieces), Side::Values, &mut ahead);
            let squares = coded.squares(simd);
            products(coded, strips, |strip| &strip.outs, &mut distances);
            let out_squares = strips.iter().flat_map(|strip| &strip.out_squares);
            for (query, (products, square)) in distances.iter_mut().zip(out_squares).enumerate() {
                let out = &queries.out[query * queries.head_dim..][..queries.head_dim];
                to_distances(products, &squares, coded.value_scales(), *square);
                mend(products, coded, (arena, pieces), &squares, (out, *square));
            }
        }
        ahead.ask_rest(simd);
        for (query, scores) in scores[..queries.lse.len()].iter().enumerate() {
            Weigh {
                scores,
                distances: (signal == Signal::Deletion).then_some(&distances[query]),
                positions: coded.positions(),
                visible: &queries.visible[query],
                lse: queries.lse[query],
                totals,
            }
            .run(simd);
        }
    }
}

/// Products of the turned levels with what `of` names in each strip.
#[inline(always)]
fn products<'a>(
    coded: &Coded,
    strips: &'a [Strip],
    of: impl Fn(&'a Strip) -> &'a CodedQueries<3>,
    out: &mut [[f32; TOKENS]; MAX_QUERIES],
) {
    for strip in strips {
        let out = &mut out[strip.start..];
        let (queries, keys, len) = (of(strip), coded.levels(), coded.len);
        // SAFETY: the caller has a value of `Avx512`, which proves the features.
        unsafe {
            match queries.len {
                1 => dots::<_, 1>(queries, keys, len, first(out)),
                2 => dots::<_, 2>(queries, keys, len, first(out)),
                3 => dots::<_, 3>(queries, keys, len, first(out)),
                _ => dots::<_, STRIP>(queries, keys, len, first(out)),
            }
        }
    }
}

#[inline(always)]
fn first<T, const R: usize>(all: &mut [T]) -> &mut [T; R] {
    all.first_chunk_mut().expect("room for all queries")
}

/// Products of levels with o to `|v - o|^2`.
#[inline(always)]
fn to_distances(
    products: &mut [f32; TOKENS],
    squares: &[f32; TOKENS],
    scales: &[f32; TOKENS],
    out_square: f32,
) {
    for ((product, square), scale) in products.iter_mut().zip(squares).zip(scales) {
        *product = scale * (scale * square - 2.0 * *product) + out_square;
    }
}

/// Computes anew the distances that are small beside v and o.
#[inline(always)]
fn mend(
    distances: &mut [f32; TOKENS],
    coded: &Coded,
    (arena, pieces): (&Arena, &[Piece]),
    squares: &[f32; TOKENS],
    (out, out_square): (&[f32], f32),
) {
    let mut is_small = [false; TOKENS];
    for (token, is_small) in is_small.iter_mut().enumerate() {
        let scale = coded.value_scales()[token];
        let terms = scale * scale * squares[token] + out_square;
        *is_small = distances[token] < SMALLEST_SHARE * terms;
    }
    if !is_small[..coded.len].contains(&true) {
        return;
    }
    let slots = pieces.iter().flat_map(|piece| piece.tokens.clone().map(move |i| (piece, i)));
    let (mut key, mut value) = (vec![0f32; out.len()], vec![0f32; out.len()]);
    for (token, (piece, index)) in slots.enumerate().filter(|(token, _)| is_small[*token]) {
        let Piece { page, bytes, .. } = piece;
        decode_token(arena.layout(), bytes, page.tier, index, &mut key, &mut value);
        distances[token] = value.iter().zip(out).map(|(v, o)| (v - o) * (v - o)).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86::spread::Line;

    #[test]
    fn squares_are_those_of_the_levels_whatever_lies_behind_them() {
        let Some(simd) = Avx512::new() else { return };
        let mut coded = Coded::new(128);
        let (levels, behind) = coded.keys.split_at_mut(2 * TOKENS);
        levels.fill(Line([128 + 3; 64]));
        behind.fill(Line([255; 64]));
        coded.len = TOKENS;
        assert_eq!(coded.squares(simd), [128.0 * 9.0; TOKENS]);
    }
}
