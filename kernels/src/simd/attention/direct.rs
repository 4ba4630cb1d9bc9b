//! Attention of a few queries straight from the codes.
//!
//! Tiles pay when many queries share them. For the few of a decode step codes become floats in
//! registers, where each is used at once by all queries: once for the scores, once for the sums of
//! values. Scales of vectors are applied to scores and weights.

use std::ops::Range;

use super::{
    codes::{self, Batch, F16s, Int8s, add},
    pieces::{Ahead, Pages, Piece, TOKENS, each_group, num_tokens, positions},
    product::{Dot, Term},
    softmax::{Partial, Queries, Seen, Weigh},
};
use crate::{
    Arena,
    codec::Format,
    simd::{Op, Simd},
};

/// Queries that share the decoding of codes: their sums stay in registers.
pub const STRIP: usize = 4;
/// Shares that are asked for ahead with each query's weights. Beside them half of one goes with each total,
/// one with each token's key, and one with each pass over its value: so three queries spread F16 pages
/// over all of the work.
const SHARES_OF_WEIGHTS: usize = 12;
/// From more queries on a tile is cheaper.
pub const MAX_QUERIES: usize = 2 * STRIP;
/// Lanes of the widest vector.
const WIDEST: usize = 16;

/// Keys or values.
#[derive(Clone, Copy, PartialEq)]
pub enum Side {
    Keys,
    Values,
}

impl Side {
    /// Format and codes of a piece's vectors, and what lies behind them in the page.
    #[inline(always)]
    pub fn codes<'a>(self, arena: &Arena, piece: &Piece<'a>) -> (Format, &'a [u8]) {
        let (info, at) = (piece.page.tier.info(), arena.layout().arrays(piece.page.tier));
        let (format, start, bytes) = match self {
            Self::Keys => (info.key, at.keys, at.key_bytes),
            Self::Values => (info.value, at.values, at.value_bytes),
        };
        (format, &piece.bytes[start + piece.tokens.start * bytes..])
    }
}

/// What a thread works in.
pub struct Direct {
    /// (STRIP, TOKENS, lanes): scores, not yet added up.
    sums: Vec<f32>,
    /// Of the last group where these were read: not where all is seen.
    pub positions: [u32; TOKENS],
    pub len: usize,
    /// (TOKENS, D): what coarse codes stand for, of keys or of values, as signed bytes.
    bytes: Vec<u8>,
    key_steps: [f32; TOKENS],
    value_steps: [f32; TOKENS],
}

impl Direct {
    pub fn new() -> Self {
        Self {
            sums: vec![0.0; STRIP * TOKENS * WIDEST],
            positions: [0; TOKENS],
            len: 0,
            bytes: Vec::new(),
            key_steps: [0.0; TOKENS],
            value_steps: [0.0; TOKENS],
        }
    }

    /// Whether the queries are few and halves of a head are whole vectors.
    pub fn serves<S: Simd>(num_queries: usize, head_dim: usize) -> bool {
        num_queries <= MAX_QUERIES && head_dim.is_multiple_of(2 * S::LANES)
    }

    /// Adds the tokens of `pages`.
    pub fn attend<S: Simd>(
        &mut self,
        simd: S,
        arena: &Arena,
        pages: Pages,
        queries: &Queries,
        partial: &mut Partial,
    ) {
        each_group(simd, arena, pages, |pieces| {
            let ahead = Ahead::new(pieces);
            simd.vectorize(Group { direct: self, arena, pieces, ahead, queries, partial });
        });
    }

    /// Reads where the tokens of a group are, unless it is known that all queries see them, and what their
    /// codes are worth. `None` where no query sees any of them.
    #[inline(always)]
    pub fn begin(
        &mut self,
        (arena, pieces): (&Arena, &[Piece]),
        (visible, sees_all): (&[Range<u32>], bool),
    ) -> Option<Seen> {
        self.len = num_tokens(pieces);
        let seen = if sees_all {
            Seen::within(&visible[0])
        } else {
            positions(arena, pieces, &mut self.positions);
            Seen::new(&self.positions[..self.len])
        };
        if !visible.iter().any(|visible| seen.overlaps(visible)) {
            return None;
        }
        self.steps(arena, pieces);
        Some(seen)
    }

    #[inline(always)]
    fn steps(&mut self, arena: &Arena, pieces: &[Piece]) {
        let mut next = 0;
        for Piece { page, bytes, tokens, .. } in pieces {
            let (info, at) = (page.tier.info(), arena.layout().arrays(page.tier));
            for (format, start, out) in [
                (info.key, at.key_scales, &mut self.key_steps),
                (info.value, at.value_scales, &mut self.value_steps),
            ] {
                let scales = &bytes[start + tokens.start..][..tokens.len()];
                let out = &mut out[next..][..tokens.len()];
                match format {
                    Format::F16 => out.fill(1.0),
                    _ => {
                        for (out, scale) in out.iter_mut().zip(scales) {
                            *out = format.step(*scale);
                        }
                    }
                }
            }
            next += tokens.len();
        }
    }

    /// What R `vectors` (R, D) and the tokens' keys or values add up, a vector of partial sums for
    /// each.
    #[inline(always)]
    pub fn add_up<S: Simd, T: Term, const R: usize>(
        &mut self,
        simd: S,
        (term, side): (T, Side),
        (arena, pieces): (&Arena, &[Piece]),
        vectors: &[f32],
        ahead: &mut Ahead,
    ) {
        let head_dim = arena.layout().head_dim;
        let mut first = 0;
        for piece in pieces {
            let (format, codes) = side.codes(arena, piece);
            let tokens = piece.tokens.len();
            let Self { bytes, sums, value_steps, .. } = &mut *self;
            let codes = unpack(simd, format, codes, head_dim, (first, tokens), bytes);
            let steps = (side == Side::Values).then_some(&value_steps[first..]);
            let batch = Batch { codes, tokens, steps };
            let out = &mut sums[first * S::LANES..];
            match format {
                Format::F16 => codes::sums::<S, F16s, T, R>(simd, term, vectors, batch, ahead, out),
                Format::Int8 | Format::Levels(_) => {
                    codes::sums::<S, Int8s, T, R>(simd, term, vectors, batch, ahead, out);
                }
            }
            first += tokens;
        }
    }

    /// Products of R `queries` (R, D) with the tokens' keys.
    #[inline(always)]
    pub fn scores<S: Simd, const R: usize>(
        &mut self,
        simd: S,
        tokens: (&Arena, &[Piece]),
        queries: &[f32],
        ahead: &mut Ahead,
    ) -> [[f32; TOKENS]; R] {
        self.add_up::<S, _, R>(simd, (Dot, Side::Keys), tokens, queries, ahead);
        let mut scores = self.totals::<S, R>(simd, ahead);
        for scores in &mut scores {
            scores.iter_mut().zip(&self.key_steps).for_each(|(score, step)| *score *= step);
        }
        scores
    }

    /// The whole of what [`Direct::add_up`] left in parts.
    #[inline(always)]
    pub fn totals<S: Simd, const R: usize>(
        &self,
        simd: S,
        ahead: &mut Ahead,
    ) -> [[f32; TOKENS]; R] {
        let Self { sums, len, .. } = self;
        let mut totals = [[0f32; TOKENS]; R];
        assert!(sums.len() >= R * TOKENS * S::LANES && *len <= TOKENS);
        for (r, out) in totals.iter_mut().enumerate() {
            for token in (0..*len).step_by(S::LANES) {
                ahead.ask(simd, S::LANES / 2);
                // SAFETY: `sums` was just seen to hold R * TOKENS rows; TOKENS is a multiple of
                // LANES, so that whole vectors of totals start below `len`.
                unsafe {
                    let rows = sums.as_ptr().add((r * TOKENS + token) * S::LANES);
                    simd.store(out.as_mut_ptr().add(token), simd.row_sums(rows));
                }
            }
        }
        totals
    }
}

/// Some tokens, for all queries.
struct Group<'a> {
    direct: &'a mut Direct,
    arena: &'a Arena,
    pieces: &'a [Piece<'a>],
    ahead: Ahead<'a>,
    queries: &'a Queries,
    partial: &'a mut Partial,
}

impl<S: Simd> Op<S> for Group<'_> {
    type Out = ();

    #[inline(always)]
    fn run(mut self, simd: S) {
        let tokens = (self.arena, self.pieces);
        let visible = (&self.queries.visible[..], self.queries.sees_all);
        let Some(seen) = self.direct.begin(tokens, visible) else {
            return self.ahead.ask_rest(simd);
        };
        let num_queries = self.partial.num_queries;
        let mut start = 0;
        while start < num_queries {
            start += match num_queries - start {
                1 => self.strip::<S, 1>(simd, start, seen),
                2 => self.strip::<S, 2>(simd, start, seen),
                3 => self.strip::<S, 3>(simd, start, seen),
                _ => self.strip::<S, STRIP>(simd, start, seen),
            };
        }
        self.ahead.ask_rest(simd);
    }
}

impl Group<'_> {
    /// Queries `start..start + R`; returns R.
    #[inline(always)]
    fn strip<S: Simd, const R: usize>(&mut self, simd: S, start: usize, seen: Seen) -> usize {
        let head_dim = self.arena.layout().head_dim;
        let queries = &self.queries.data[start * head_dim..][..R * head_dim];
        let tokens = (self.arena, self.pieces);
        let mut weights = self.direct.scores::<S, R>(simd, tokens, queries, &mut self.ahead);
        let mut factors = [0f32; R];
        for (r, (weights, factor)) in weights.iter_mut().zip(&mut factors).enumerate() {
            let (row, visible) = (start + r, &self.queries.visible[start + r]);
            let weigh = Weigh {
                scores: weights,
                positions: &self.direct.positions,
                len: self.direct.len,
                visible: (!seen.inside(visible)).then_some(visible),
                largest: &mut self.partial.largest[row],
                sum: &mut self.partial.sums[row],
            };
            *factor = weigh.run(simd);
            self.ahead.ask(simd, SHARES_OF_WEIGHTS);
            for (weight, scale) in weights.iter_mut().zip(&self.direct.value_steps) {
                *weight *= scale;
            }
        }
        self.values(simd, start, &weights, &factors);
        R
    }

    /// o = factor o + weights V
    #[inline(always)]
    fn values<S: Simd, const R: usize>(
        &mut self,
        simd: S,
        start: usize,
        weights: &[[f32; TOKENS]; R],
        factors: &[f32; R],
    ) {
        let head_dim = self.arena.layout().head_dim;
        let half = head_dim / 2;
        let mut first = 0;
        for piece in self.pieces {
            let ((format, codes), tokens) =
                (Side::Values.codes(self.arena, piece), piece.tokens.len());
            unpack(simd, format, codes, head_dim, (first, tokens), &mut self.direct.bytes);
            first += tokens;
        }
        let mut channel = 0;
        while channel < half {
            // 16 registers hold the sums of 3 x 4 vectors, 32 those of 4 x 4.
            let wide = (S::LANES == WIDEST || R < STRIP) && half - channel >= 2 * S::LANES;
            if wide {
                self.columns::<S, R, 2>(simd, (start, channel), weights, factors);
                channel += 2 * S::LANES;
            } else {
                self.columns::<S, R, 1>(simd, (start, channel), weights, factors);
                channel += S::LANES;
            }
        }
    }

    /// N vectors of channels from `channel`, and those half a head further.
    #[inline(always)]
    fn columns<S: Simd, const R: usize, const N: usize>(
        &mut self,
        simd: S,
        (start, channel): (usize, usize),
        weights: &[[f32; TOKENS]; R],
        factors: &[f32; R],
    ) {
        let (half, stride) = (self.arena.layout().head_dim / 2, self.partial.stride);
        let out = &mut self.partial.out[start * stride + channel..];
        assert!(out.len() >= (R - 1) * stride + half + N * S::LANES);
        let out = out.as_mut_ptr();
        let at = |r: usize, n: usize, upper: usize| r * stride + n * S::LANES + upper * half;
        let mut sums = [[[simd.splat(0.0); 2]; N]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            let factor = simd.splat(factors[r]);
            for (n, sums) in sums.iter_mut().enumerate() {
                for (upper, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `out` was just seen to be long enough.
                    *sum = simd.mul(factor, unsafe { simd.load(out.add(at(r, n, upper))) });
                }
            }
        }
        let mut first = 0;
        for piece in self.pieces {
            let (format, codes) = Side::Values.codes(self.arena, piece);
            let codes = match format {
                Format::Levels(_) => &self.direct.bytes[first * 2 * half..],
                _ => codes,
            };
            let batch = Batch { codes, tokens: piece.tokens.len(), steps: None };
            let ahead = &mut self.ahead;
            let (place, weights) = ((half, channel), (weights, first));
            match format {
                Format::F16 => add::<S, F16s, R, N>(simd, batch, ahead, place, weights, &mut sums),
                _ => add::<S, Int8s, R, N>(simd, batch, ahead, place, weights, &mut sums),
            }
            first += piece.tokens.len();
        }
        for (r, sums) in sums.iter().enumerate() {
            for (n, sums) in sums.iter().enumerate() {
                for (upper, sum) in sums.iter().enumerate() {
                    // SAFETY: as above.
                    unsafe { simd.store(out.add(at(r, n, upper)), *sum) };
                }
            }
        }
    }
}

/// Coarse codes as signed bytes in their place of `bytes`, tokens `first..first + len`; others as
/// they are.
#[inline(always)]
fn unpack<'a, S: Simd>(
    simd: S,
    format: Format,
    codes: &'a [u8],
    head_dim: usize,
    (first, len): (usize, usize),
    bytes: &'a mut Vec<u8>,
) -> &'a [u8] {
    if !matches!(format, Format::Levels(_)) {
        return codes;
    }
    bytes.resize(TOKENS * head_dim, 0);
    let bytes = &mut bytes[first * head_dim..][..len * head_dim];
    simd.unpack(format, head_dim, codes, bytes);
    bytes
}
