//! The signals of a tile's tokens.

use std::ops::Range;

use super::{
    pieces::TOKENS,
    product::{Dot, Product, Rows, RowsMut, SquaredDistance, Term},
    tile::Tile,
};
use crate::{
    portable::attribution::LARGEST_SHARE,
    simd::{Op, Simd, exp2},
};

/// Queries whose scores are held at a time.
const STRIP: usize = 6;

/// The queries of an item, scores and log-sum-exps in powers of two.
#[derive(Default)]
pub struct Queries {
    pub head_dim: usize,
    /// (queries, D)
    pub data: Vec<f32>,
    /// (queries, D), rotated: values are cached so.
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
    pub visible: Vec<Range<u32>>,
}

impl Queries {
    /// Positions that any of the queries sees.
    pub fn wanted(&self) -> Range<u32> {
        let start = self.visible.iter().map(|visible| visible.start).min();
        let end = self.visible.iter().map(|visible| visible.end).max();
        start.unwrap_or(0)..end.unwrap_or(0)
    }

    /// Adds the signals of a tile's tokens: deletion when its values (D, TOKENS) are given, else
    /// attention mass.
    #[inline(always)]
    pub fn add<S: Simd>(
        &self,
        simd: S,
        tile: &Tile,
        values: Option<&[f32]>,
        totals: &mut [f32; TOKENS],
    ) {
        let mut scores = [[0f32; TOKENS]; STRIP];
        let mut distances = [[0f32; TOKENS]; STRIP];
        for start in (0..self.lse.len()).step_by(STRIP) {
            let rows = start..(start + STRIP).min(self.lse.len());
            self.product(simd, Dot, (&self.data, &tile.keys), tile, &rows, &mut scores);
            if let Some(values) = values {
                let term = SquaredDistance;
                self.product(simd, term, (&self.out, values), tile, &rows, &mut distances);
            }
            for ((row, scores), distances) in rows.zip(&scores).zip(&distances) {
                simd.vectorize(Weigh {
                    scores,
                    distances: values.map(|_| distances),
                    positions: &tile.positions,
                    visible: &self.visible[row],
                    lse: self.lse[row],
                    totals,
                });
            }
        }
    }

    /// `rows` of a (queries, D) with b (D, TOKENS).
    #[inline(always)]
    fn product<S: Simd>(
        &self,
        simd: S,
        term: impl Term,
        (a, b): (&[f32], &[f32]),
        tile: &Tile,
        rows: &Range<usize>,
        out: &mut [[f32; TOKENS]; STRIP],
    ) {
        let (depth, cols) = (self.head_dim, tile.len.next_multiple_of(S::LANES));
        let a = Rows { data: &a[rows.start * depth..], stride: depth };
        let b = Rows { data: b, stride: TOKENS };
        let out = RowsMut { data: out.as_flattened_mut(), stride: TOKENS };
        Product { term, a, b, depth, scales: None }.run(simd, (rows.len(), cols), out);
    }
}

/// `1/|k|`
#[inline(always)]
pub fn inverse_norms<S: Simd>(simd: S, tile: &Tile, out: &mut [f32; TOKENS]) {
    let depth = tile.head_dim;
    let origin = vec![0f32; depth];
    let a = Rows { data: &origin, stride: depth };
    let b = Rows { data: &tile.keys, stride: TOKENS };
    Product { term: SquaredDistance, a, b, depth, scales: None }.run(
        simd,
        (1, tile.len.next_multiple_of(S::LANES)),
        RowsMut { data: out, stride: TOKENS },
    );
    for x in out {
        *x = 1.0 / x.sqrt().max(f32::MIN_POSITIVE);
    }
}

/// Adds the signals of one query.
pub struct Weigh<'a> {
    pub scores: &'a [f32; TOKENS],
    /// `|v - o|^2`, for the deletion signal.
    pub distances: Option<&'a [f32; TOKENS]>,
    pub positions: &'a [u32; TOKENS],
    pub visible: &'a Range<u32>,
    pub lse: f32,
    pub totals: &'a mut [f32; TOKENS],
}

impl<S: Simd> Op<S> for Weigh<'_> {
    type Out = ();

    #[inline(always)]
    fn run(self, _: S) {
        let Self { scores, distances, positions, visible, lse, totals } = self;
        let mut shares = [0f32; TOKENS];
        for ((p, score), position) in shares.iter_mut().zip(scores).zip(positions) {
            let seen = position.wrapping_sub(visible.start) < visible.end - visible.start;
            *p = if seen { exp2((score - lse).min(1.0)) } else { 0.0 };
        }
        let Some(distances) = distances else {
            totals.iter_mut().zip(shares).for_each(|(total, p)| *total += p);
            return;
        };
        for ((total, p), distance) in totals.iter_mut().zip(shares).zip(distances) {
            let p = p.min(LARGEST_SHARE);
            let odds = p / (1.0 - p);
            *total += odds * odds * distance;
        }
    }
}
