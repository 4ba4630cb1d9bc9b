//! Attention of a few queries straight from the codes.
//!
//! Tiles pay when many queries share them. For the few of a decode step codes become floats in
//! registers, where each is used at once by all queries: once for the scores, once for the sums of
//! values. Scales of vectors are applied to scores and weights.

use super::{
    super::simd::{Op, Simd},
    codes::{Batch, F16s, Int8s, add, dots},
    pieces::{Piece, TOKENS, each_group, positions},
    softmax::{Partial, Queries, Seen, Weigh},
};
use crate::{Arena, PageRef, codec::Format};

/// Queries that share the decoding of codes: their sums stay in registers.
const STRIP: usize = 4;
/// From more queries on a tile is cheaper.
pub const MAX_QUERIES: usize = 2 * STRIP;
/// Lanes of the widest vector.
const WIDEST: usize = 16;

/// What a thread works in.
pub struct Direct {
    /// (STRIP, TOKENS, lanes): scores, not yet added up.
    sums: Vec<f32>,
    positions: [u32; TOKENS],
    len: usize,
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
    pub fn serves<S: Simd>(queries: &Queries, head_dim: usize) -> bool {
        queries.visible.len() <= MAX_QUERIES && head_dim.is_multiple_of(2 * S::LANES)
    }

    /// Adds the tokens of `pages`.
    pub fn attend<S: Simd>(
        &mut self,
        simd: S,
        arena: &Arena,
        pages: &[PageRef],
        queries: &Queries,
        partial: &mut Partial,
    ) {
        each_group(simd, arena, pages, |pieces| {
            simd.vectorize(Group { direct: self, arena, pieces, queries, partial });
        });
    }
}

/// Some tokens, for all queries.
struct Group<'a> {
    direct: &'a mut Direct,
    arena: &'a Arena,
    pieces: &'a [Piece<'a>],
    queries: &'a Queries,
    partial: &'a mut Partial,
}

impl<S: Simd> Op<S> for Group<'_> {
    type Out = ();

    #[inline(always)]
    fn run(mut self, simd: S) {
        self.direct.len = positions(self.arena, self.pieces, &mut self.direct.positions);
        let seen = Seen::new(&self.direct.positions[..self.direct.len]);
        if !self.queries.visible.iter().any(|visible| seen.overlaps(visible)) {
            self.pieces.iter().for_each(|piece| simd.prefetch(piece.ahead));
            return;
        }
        self.steps();
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
    }
}

impl Group<'_> {
    fn steps(&mut self) {
        let Direct { key_steps, value_steps, .. } = self.direct;
        let mut next = 0;
        for Piece { page, tokens, .. } in self.pieces {
            let (info, at) = (page.tier.info(), self.arena.layout().arrays(page.tier));
            let bytes = self.arena.page(page.page);
            for (format, start, out) in [
                (info.key, at.key_scales, &mut *key_steps),
                (info.value, at.value_scales, &mut *value_steps),
            ] {
                let scales = &bytes[start + tokens.start..][..tokens.len()];
                for (out, scale) in out[next..].iter_mut().zip(scales) {
                    *out = format.step(*scale);
                }
            }
            next += tokens.len();
        }
    }

    /// Queries `start..start + R`; returns R.
    #[inline(always)]
    fn strip<S: Simd, const R: usize>(&mut self, simd: S, start: usize, seen: Seen) -> usize {
        let mut weights = [[0f32; TOKENS]; R];
        self.dots::<S, R>(simd, start);
        self.scores(simd, &mut weights);
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
            for (weight, scale) in weights.iter_mut().zip(&self.direct.value_steps) {
                *weight *= scale;
            }
        }
        self.values(simd, start, &weights, &factors);
        R
    }

    /// Products of queries and keys, a vector of partial sums for each.
    #[inline(always)]
    fn dots<S: Simd, const R: usize>(&mut self, simd: S, start: usize) {
        let head_dim = self.arena.layout().head_dim;
        let queries = &self.queries.data[start * head_dim..][..R * head_dim];
        let mut first = 0;
        for piece in self.pieces {
            let at = self.arena.layout().arrays(piece.page.tier);
            let format = piece.page.tier.info().key;
            let codes = vectors(self.arena, piece, at.keys, at.key_bytes);
            let tokens = piece.tokens.len();
            let Direct { bytes, sums, .. } = &mut *self.direct;
            let codes = unpack(simd, format, codes, head_dim, (first, tokens), bytes);
            let codes = Batch { codes, tokens, ahead: if start == 0 { piece.ahead } else { &[] } };
            let sums = &mut sums[first * S::LANES..];
            match format {
                Format::F16 => dots::<S, F16s, R>(simd, queries, codes, sums),
                Format::Int8 | Format::Levels(_) => {
                    dots::<S, Int8s, R>(simd, queries, codes, sums);
                }
            }
            first += tokens;
        }
    }

    #[inline(always)]
    fn scores<S: Simd, const R: usize>(&self, simd: S, scores: &mut [[f32; TOKENS]; R]) {
        let Direct { sums, key_steps, len, .. } = &*self.direct;
        assert!(sums.len() >= R * TOKENS * S::LANES && *len <= TOKENS);
        for (r, scores) in scores.iter_mut().enumerate() {
            for token in (0..*len).step_by(S::LANES) {
                // SAFETY: `sums` was just seen to hold R * TOKENS rows; TOKENS is a multiple of
                // LANES, so that whole vectors of scores and scales start below `len`.
                unsafe {
                    let rows = sums.as_ptr().add((r * TOKENS + token) * S::LANES);
                    let scale = simd.load(key_steps.as_ptr().add(token));
                    let score = simd.mul(scale, simd.row_sums(rows));
                    simd.store(scores.as_mut_ptr().add(token), score);
                }
            }
        }
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
            let at = self.arena.layout().arrays(piece.page.tier);
            let codes = vectors(self.arena, piece, at.values, at.value_bytes);
            let (format, tokens) = (piece.page.tier.info().value, piece.tokens.len());
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
            let arrays = self.arena.layout().arrays(piece.page.tier);
            let codes = vectors(self.arena, piece, arrays.values, arrays.value_bytes);
            let tokens = first..first + piece.tokens.len();
            let place = (half, channel);
            match piece.page.tier.info().value {
                Format::F16 => add::<S, F16s, R, N>(simd, codes, place, tokens, weights, &mut sums),
                Format::Int8 => {
                    add::<S, Int8s, R, N>(simd, codes, place, tokens, weights, &mut sums);
                }
                Format::Levels(_) => {
                    let codes = &self.direct.bytes[tokens.start * 2 * half..];
                    add::<S, Int8s, R, N>(simd, codes, place, tokens, weights, &mut sums);
                }
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

/// The codes of a piece's vectors, `bytes` each, of the array at `start`.
#[inline(always)]
fn vectors<'a>(arena: &'a Arena, piece: &Piece, start: usize, bytes: usize) -> &'a [u8] {
    let range = start + piece.tokens.start * bytes..start + piece.tokens.end * bytes;
    &arena.page(piece.page.page)[range]
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
