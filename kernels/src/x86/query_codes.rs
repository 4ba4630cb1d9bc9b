//! The queries of a KV head in integers, and what keys they go with.

use super::{
    Avx512,
    coded::{Coded, STRIP},
    integer::{CodedQueries, dots},
    pairs::PairedQueries,
};
use crate::{
    ActivationBits, Arena,
    simd::attention::{
        direct::Side,
        pieces::{Ahead, Piece, TOKENS},
    },
};

/// Queries in integers, [`STRIP`] at a time, in memory that stays for the next ones.
#[derive(Default)]
pub struct QueryCodes {
    /// For coded pages, where activations have 8 bits; weights have 8 too then.
    pub sixteen: Vec<CodedQueries<2>>,
    /// The same for pages of F16, if there are many queries.
    pub paired: Vec<PairedQueries>,
    /// For coded pages otherwise; weights have 24 bits too then.
    pub twenty_four: Vec<CodedQueries<3>>,
}

impl QueryCodes {
    /// Holds `data` (queries, D), in as many bits as activations shall keep.
    pub fn fill(&mut self, simd: Avx512, data: &[f32], head_dim: usize, are_many: bool) {
        let is_coarse = simd.activations == ActivationBits::Eight;
        let if_so = |so| if so { data } else { &[] };
        fill(simd, &mut self.sixteen, if_so(is_coarse), head_dim);
        fill(simd, &mut self.paired, if_so(is_coarse && are_many), head_dim);
        fill(simd, &mut self.twenty_four, if_so(!is_coarse), head_dim);
    }
}

/// As many strips as `data` (queries, D) has.
fn fill<S: Strip>(simd: Avx512, strips: &mut Vec<S>, data: &[f32], head_dim: usize) {
    let data = data.chunks(STRIP * head_dim);
    strips.resize_with(data.len(), S::default);
    strips.iter_mut().zip(data).for_each(|(strip, data)| strip.hold(simd, data, head_dim));
}

/// Whether many queries are better multiplied as integers too: not in 24 bits, which take as many
/// products as f32.
pub fn serves_many(simd: Avx512) -> bool {
    simd.activations == ActivationBits::Eight
}

/// Some queries in integers, and the keys that go with them.
pub trait Strip: Default {
    /// Holds `data` (queries, D) from now on.
    fn hold(&mut self, simd: Avx512, data: &[f32], head_dim: usize);

    fn len(&self) -> usize;

    /// Makes the keys of all pieces ready for [`Strip::dots`].
    fn turn(simd: Avx512, coded: &mut Coded, tokens: (&Arena, &[Piece]), ahead: &mut Ahead);

    /// Scores of R queries, before the keys' scales.
    fn dots<const R: usize>(&self, simd: Avx512, coded: &Coded, scores: &mut [[f32; TOKENS]; R]);
}

impl<const B: usize> Strip for CodedQueries<B> {
    fn hold(&mut self, _: Avx512, data: &[f32], head_dim: usize) {
        // SAFETY: a value of `Avx512` proves the features.
        unsafe { self.fill(data, head_dim) };
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.len
    }

    #[inline(always)]
    fn turn(simd: Avx512, coded: &mut Coded, tokens: (&Arena, &[Piece]), ahead: &mut Ahead) {
        coded.turn(simd, tokens, Side::Keys, ahead);
    }

    #[inline(always)]
    fn dots<const R: usize>(&self, _: Avx512, coded: &Coded, scores: &mut [[f32; TOKENS]; R]) {
        // SAFETY: a value of `Avx512` proves the features.
        unsafe { dots(self, coded.levels(), coded.len, scores) };
    }
}

impl Strip for PairedQueries {
    fn hold(&mut self, _: Avx512, data: &[f32], head_dim: usize) {
        // SAFETY: a value of `Avx512` proves the features.
        unsafe { self.fill(data, head_dim) };
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.len
    }

    #[inline(always)]
    fn turn(simd: Avx512, coded: &mut Coded, tokens: (&Arena, &[Piece]), ahead: &mut Ahead) {
        coded.turn_words(simd, tokens, ahead);
    }

    #[inline(always)]
    fn dots<const R: usize>(&self, _: Avx512, coded: &Coded, scores: &mut [[f32; TOKENS]; R]) {
        // SAFETY: a value of `Avx512` proves the features.
        unsafe { self.dots(&coded.keys, coded.len, scores) };
    }
}
