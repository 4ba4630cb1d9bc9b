//! Attention of some queries over some pages with a running softmax (FlashAttention, arXiv
//! 2205.14135), in powers of two.

use std::ops::Range;

use super::{
    pieces::TOKENS,
    product::{Dot, Product, Rows, RowsMut},
    tile::Tile,
};
use crate::simd::{Op, Simd, exp2};

/// Queries whose scores are held at a time.
const STRIP: usize = 6;

/// Queries that share a KV head, and what they saw so far.
#[derive(Default)]
pub struct Partial {
    pub num_queries: usize,
    pub stride: usize,
    /// (queries, D): o, not yet divided by `sums`; rotated.
    pub out: Vec<f32>,
    /// (queries): the largest score, in powers of two.
    pub largest: Vec<f32>,
    /// (queries): sum of 2^(score - largest).
    pub sums: Vec<f32>,
}

/// Queries ready for products: scaled to scores in powers of two.
#[derive(Default)]
pub struct Queries {
    /// (queries, D)
    pub data: Vec<f32>,
    /// Positions each query sees.
    pub visible: Vec<Range<u32>>,
    /// Whether each of them is known to see all that is cached, wherever it is.
    pub sees_all: bool,
}

impl Partial {
    /// Nothing seen yet, in the memory it has. `stride`: head size, padded.
    pub fn restart(&mut self, num_queries: usize, stride: usize) {
        (self.num_queries, self.stride) = (num_queries, stride);
        let refill = |values: &mut Vec<f32>, len: usize, value: f32| {
            values.clear();
            values.resize(len, value);
        };
        refill(&mut self.out, num_queries * stride, 0.0);
        refill(&mut self.largest, num_queries, f32::NEG_INFINITY);
        refill(&mut self.sums, num_queries, 0.0);
    }

    /// The output (D, padded) of query `i`, not yet divided.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.out[i * self.stride..(i + 1) * self.stride]
    }

    /// Adds the tokens of a tile.
    #[inline(always)]
    pub fn add<S: Simd>(&mut self, simd: S, queries: &Queries, tile: &Tile) {
        let seen = Seen::new(&tile.positions[..tile.len]);
        for start in (0..self.num_queries).step_by(STRIP) {
            let rows = start..(start + STRIP).min(self.num_queries);
            let visible = &queries.visible[rows.clone()];
            if visible.iter().any(|visible| seen.overlaps(visible)) {
                self.add_strip(simd, rows, queries, tile, seen);
            }
        }
    }

    #[inline(always)]
    fn add_strip<S: Simd>(
        &mut self,
        simd: S,
        rows: Range<usize>,
        queries: &Queries,
        tile: &Tile,
        seen: Seen,
    ) {
        let mut scores = [0f32; STRIP * TOKENS];
        let mut scales = [0f32; STRIP];
        let cols = tile.len.next_multiple_of(S::LANES);
        Product {
            term: Dot,
            a: Rows { data: &queries.data[rows.start * tile.head_dim..], stride: tile.head_dim },
            b: Rows { data: &tile.keys, stride: TOKENS },
            depth: tile.head_dim,
            scales: None,
        }
        .run(simd, (rows.len(), cols), RowsMut { data: &mut scores, stride: TOKENS });
        simd.vectorize(WeighRows {
            scores: scores.as_chunks_mut().0,
            tile,
            visible: &queries.visible[rows.clone()],
            seen,
            largest: &mut self.largest[rows.clone()],
            sums: &mut self.sums[rows.clone()],
            scales: &mut scales,
        });
        Product {
            term: Dot,
            a: Rows { data: &scores, stride: TOKENS },
            b: Rows { data: &tile.values, stride: tile.stride },
            depth: tile.len,
            scales: Some(&scales),
        }
        .run(
            simd,
            (rows.len(), tile.stride),
            RowsMut { data: &mut self.out[rows.start * tile.stride..], stride: tile.stride },
        );
    }
}

/// [`Weigh`] for the rows of a strip: what they share is loaded once, and their chains of dependent
/// steps overlap.
struct WeighRows<'a> {
    scores: &'a mut [[f32; TOKENS]],
    tile: &'a Tile,
    visible: &'a [Range<u32>],
    seen: Seen,
    largest: &'a mut [f32],
    sums: &'a mut [f32],
    scales: &'a mut [f32; STRIP],
}

impl<S: Simd> Op<S> for WeighRows<'_> {
    type Out = ();

    #[inline(always)]
    fn run(self, simd: S) {
        let Self { scores, tile, visible, seen, largest, sums, scales } = self;
        let rows = scores.iter_mut().zip(scales).zip(visible).zip(largest.iter_mut().zip(sums));
        for (((scores, scale), visible), (largest, sum)) in rows {
            let weigh = Weigh {
                scores,
                positions: &tile.positions,
                len: tile.len,
                visible: (!seen.inside(visible)).then_some(visible),
                largest,
                sum,
            };
            *scale = weigh.run(simd);
        }
    }
}

/// A range that holds the positions of a group.
#[derive(Clone, Copy)]
pub struct Seen {
    pub first: u32,
    pub last: u32,
}

impl Seen {
    #[inline(always)]
    pub fn new(positions: &[u32]) -> Self {
        let (first, last) = positions.iter().fold((u32::MAX, 0), |(a, b), &p| (a.min(p), b.max(p)));
        Self { first, last }
    }

    /// Of tokens that are known to lie there, wherever.
    #[inline(always)]
    pub fn within(visible: &Range<u32>) -> Self {
        Self { first: visible.start, last: visible.end - 1 }
    }

    #[inline(always)]
    pub fn overlaps(self, visible: &Range<u32>) -> bool {
        self.first < visible.end && self.last >= visible.start
    }

    #[inline(always)]
    pub fn inside(self, visible: &Range<u32>) -> bool {
        self.first >= visible.start && self.last < visible.end
    }
}

/// Turns the scores of one query into weights relative to the largest score so far. Returns the
/// factor that brings earlier sums to the same scale.
pub struct Weigh<'a> {
    pub scores: &'a mut [f32; TOKENS],
    pub positions: &'a [u32; TOKENS],
    pub len: usize,
    /// What the query sees, unless it sees all of the tile.
    pub visible: Option<&'a Range<u32>>,
    pub largest: &'a mut f32,
    pub sum: &'a mut f32,
}

impl<S: Simd> Op<S> for Weigh<'_> {
    type Out = f32;

    #[inline(always)]
    fn run(self, simd: S) -> f32 {
        let Self { scores, positions, len, visible, largest, sum } = self;
        scores[len..].fill(f32::NEG_INFINITY);
        if let Some(visible) = visible {
            mask(scores, positions, visible);
        }
        let new = largest_of(simd, scores).max(*largest);
        if new == f32::NEG_INFINITY {
            scores.fill(0.0);
            return 1.0;
        }
        // Far into a sequence the largest score rarely changes.
        let scale = if new == *largest { 1.0 } else { exp2(*largest - new) };
        *sum = *sum * scale + exponentiate(simd, scores, new);
        *largest = new;
        scale
    }
}

#[inline(always)]
fn mask(scores: &mut [f32; TOKENS], positions: &[u32; TOKENS], visible: &Range<u32>) {
    for (score, position) in scores.iter_mut().zip(positions) {
        let seen = position.wrapping_sub(visible.start) < visible.end - visible.start;
        *score = if seen { *score } else { f32::NEG_INFINITY };
    }
}

#[inline(always)]
fn largest_of<S: Simd>(simd: S, scores: &[f32; TOKENS]) -> f32 {
    let mut largest = simd.splat(f32::NEG_INFINITY);
    for run in scores.chunks_exact(S::LANES) {
        // SAFETY: LANES floats.
        largest = simd.max(unsafe { simd.load(run.as_ptr()) }, largest);
    }
    simd.largest_lane(largest)
}

/// Replaces scores with 2^(score - largest) and returns their sum.
#[inline(always)]
fn exponentiate<S: Simd>(simd: S, scores: &mut [f32; TOKENS], largest: f32) -> f32 {
    let (mut sum, largest) = (simd.splat(0.0), simd.splat(largest));
    for run in scores.chunks_exact_mut(S::LANES) {
        // SAFETY: LANES floats.
        unsafe {
            let power = simd.exp2(simd.sub(simd.load(run.as_ptr()), largest));
            simd.store(run.as_mut_ptr(), power);
            sum = simd.add(sum, power);
        }
    }
    simd.sum_of_lanes(sum)
}
