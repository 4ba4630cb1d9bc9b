//! Attention of a few queries over coded pages, in integers.
//!
//! The codes of a group of tokens become levels of 8 bits, turned so that one instruction multiplies
//! four channels of 16 keys, or four tokens of 16 channels: no sum runs across a register. The rest
//! does not know the format.

use std::arch::x86_64::*;

use super::{
    Avx512,
    integer::{CodedWeights, LANES, Outputs, WIDTH, dots, interleave_values, transpose_keys},
    spread::{Line, Spread, Wanted},
};
use crate::{
    Arena, PageRef,
    codec::Format,
    page::{PerTier, Tier},
    simd::{
        Op, Simd,
        attention::{
            pieces::{Piece, TOKENS, each_group},
            softmax::{Partial, Queries, Seen, Weigh},
        },
    },
};

pub use super::integer::CodedQueries;

/// What proves that codes can be multiplied as integers.
pub type Wide = Avx512;

/// Queries whose sums stay in registers.
pub const STRIP: usize = 4;

/// The queries (queries, D) in integers, [`STRIP`] at a time.
pub fn code(_: Avx512, data: &[f32], head_dim: usize) -> Vec<CodedQueries> {
    // SAFETY: a value of `Avx512` proves the features.
    let strip = |data| unsafe { CodedQueries::new(data, head_dim) };
    data.chunks(STRIP * head_dim).map(strip).collect()
}

/// What a thread works in.
pub struct Coded {
    pub head_dim: usize,
    /// Levels of one register of each token.
    pub rows: Box<[Line; TOKENS]>,
    /// (registers, groups of 4 channels, tokens), unsigned.
    pub keys: Vec<Line>,
    /// (registers, quads of tokens, 4 lines)
    values: Vec<Line>,
    pub positions: [u32; TOKENS],
    pub key_scales: [f32; TOKENS],
    pub value_scales: [f32; TOKENS],
    pub len: usize,
    spreads: PerTier<Spreads>,
}

/// How the registers of a tier's vectors are unpacked; none for F16.
struct Spreads {
    keys: Vec<Spread>,
    values: Vec<Spread>,
}

impl Spreads {
    fn new(tier: Tier, head_dim: usize) -> Self {
        let of = |format| match format {
            Format::F16 => Vec::new(),
            format => (0..head_dim / WIDTH).map(|i| Spread::new(format, head_dim, i)).collect(),
        };
        Self { keys: of(tier.info().key), values: of(tier.info().value) }
    }
}

impl Coded {
    /// Whether heads are whole registers.
    pub fn serves(head_dim: usize) -> bool {
        head_dim.is_multiple_of(WIDTH)
    }

    pub fn new(head_dim: usize) -> Self {
        let lines = vec![Line::ZERO; head_dim.div_ceil(WIDTH) * TOKENS];
        Self {
            head_dim,
            rows: Box::new([Line::ZERO; TOKENS]),
            keys: lines.clone(),
            values: lines,
            positions: [0; TOKENS],
            key_scales: [0.0; TOKENS],
            value_scales: [0.0; TOKENS],
            len: 0,
            spreads: PerTier::new(|tier| Spreads::new(tier, head_dim)),
        }
    }

    /// Adds the tokens of `pages`, none of which is F16. `codes` are those of `queries`.
    pub fn attend(
        &mut self,
        simd: Avx512,
        arena: &Arena,
        pages: &[PageRef],
        (queries, codes): (&Queries, &[CodedQueries]),
        partial: &mut Partial,
    ) {
        each_group(simd, arena, pages, |pieces| {
            simd.vectorize(Group { coded: self, arena, pieces, queries, codes, partial });
        });
    }

    /// Levels of one of the arrays of all pieces, channels of register `i`; `flip` 128 makes
    /// them unsigned.
    #[inline(always)]
    pub fn load(&mut self, arena: &Arena, pieces: &[Piece], i: usize, keys: bool, flip: u8) {
        let mut next = 0;
        for Piece { page, tokens, ahead } in pieces {
            let (at, spreads) = (arena.layout().arrays(page.tier), &self.spreads[page.tier]);
            let (spread, start, bytes) = match keys {
                true => (&spreads.keys[i], at.keys, at.key_bytes),
                false => (&spreads.values[i], at.values, at.value_bytes),
            };
            let codes = &arena.page(page.page)[start..][tokens.start * bytes..tokens.end * bytes];
            // Half of it with the keys and half with the values.
            let (first, second) = ahead.split_at(ahead.len() / 2);
            let ahead = if i > 0 {
                &[]
            } else if keys {
                first
            } else {
                second
            };
            let rows = &mut self.rows[next..next + tokens.len()];
            // SAFETY: the caller runs with AVX-512 BW and VBMI.
            unsafe { spread.unpack(codes, Wanted { flip, ahead }, rows) };
            next += tokens.len();
        }
    }

    /// Positions of the tokens of all pieces, and their number.
    #[inline(always)]
    pub fn locate(&mut self, arena: &Arena, pieces: &[Piece]) {
        self.len = 0;
        for Piece { page, tokens, .. } in pieces {
            let start = arena.layout().arrays(page.tier).positions + 2 * tokens.start;
            let offsets = &arena.page(page.page)[start..][..2 * tokens.len()];
            to_positions(page.base, offsets, &mut self.positions[self.len..][..tokens.len()]);
            self.len += tokens.len();
        }
    }

    #[inline(always)]
    pub fn scales(&mut self, arena: &Arena, pieces: &[Piece]) {
        let mut next = 0;
        for Piece { page, tokens, .. } in pieces {
            let (info, at) = (page.tier.info(), arena.layout().arrays(page.tier));
            let bytes = arena.page(page.page);
            for (format, start, out) in [
                (info.key, at.key_scales, &mut self.key_scales),
                (info.value, at.value_scales, &mut self.value_scales),
            ] {
                let scales = &bytes[start + tokens.start..start + tokens.end];
                to_steps(format, scales, &mut out[next..next + tokens.len()]);
            }
            next += tokens.len();
        }
    }
}

/// [`Format::step`] of each scale: an f16 whose upper byte it is, but for the sign.
#[inline(always)]
fn to_steps(format: Format, scales: &[u8], out: &mut [f32]) {
    for (scales, out) in scales.chunks(LANES).zip(out.chunks_mut(LANES)) {
        let lanes = ((1u32 << out.len()) - 1) as u16;
        // SAFETY: the caller runs with AVX-512 BW and VL; masked lanes are not touched.
        unsafe {
            let bytes = _mm_maskz_loadu_epi8(lanes, scales.as_ptr().cast());
            let halves = _mm256_slli_epi16::<7>(_mm256_cvtepu8_epi16(bytes));
            let steps = _mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(format.unit()));
            _mm512_mask_storeu_ps(out.as_mut_ptr(), lanes, steps);
        }
    }
}

/// Offsets of 16 bits, counted from `base`.
#[inline(always)]
fn to_positions(base: u32, offsets: &[u8], out: &mut [u32]) {
    for (offsets, out) in offsets.chunks(2 * LANES).zip(out.chunks_mut(LANES)) {
        let lanes = ((1u32 << out.len()) - 1) as u16;
        // SAFETY: the caller runs with AVX-512 BW and VL; masked lanes are not touched.
        unsafe {
            let offsets = _mm256_maskz_loadu_epi16(lanes, offsets.as_ptr().cast());
            let base = _mm512_set1_epi32(base as i32);
            let positions = _mm512_add_epi32(base, _mm512_cvtepi16_epi32(offsets));
            _mm512_mask_storeu_epi32(out.as_mut_ptr().cast(), lanes, positions);
        }
    }
}

/// Some tokens, for all queries.
struct Group<'a> {
    coded: &'a mut Coded,
    arena: &'a Arena,
    pieces: &'a [Piece<'a>],
    queries: &'a Queries,
    /// STRIP queries each.
    codes: &'a [CodedQueries],
    partial: &'a mut Partial,
}

impl Op<Avx512> for Group<'_> {
    type Out = ();

    #[inline(always)]
    fn run(mut self, simd: Avx512) {
        let Self { coded, arena, pieces, queries, .. } = &mut self;
        coded.locate(arena, pieces);
        let seen = Seen::new(&coded.positions[..coded.len]);
        if !queries.visible.iter().any(|visible| seen.overlaps(visible)) {
            pieces.iter().for_each(|piece| simd.prefetch(piece.ahead));
            return;
        }
        coded.scales(arena, pieces);
        for i in 0..coded.head_dim / WIDTH {
            let lines = i * TOKENS..(i + 1) * TOKENS;
            coded.load(arena, pieces, i, true, 128);
            // SAFETY: a value of `Avx512` proves the features.
            unsafe {
                transpose_keys(simd, &coded.rows, coded.len, &mut coded.keys[lines.clone()]);
            }
            coded.load(arena, pieces, i, false, 0);
            // SAFETY: as above.
            unsafe { interleave_values(&coded.rows, coded.len, &mut coded.values[lines]) };
        }
        for (i, codes) in self.codes.iter().enumerate() {
            match codes.len {
                1 => self.strip::<1>(simd, codes, i * STRIP, seen),
                2 => self.strip::<2>(simd, codes, i * STRIP, seen),
                3 => self.strip::<3>(simd, codes, i * STRIP, seen),
                _ => self.strip::<STRIP>(simd, codes, i * STRIP, seen),
            }
        }
    }
}

impl Group<'_> {
    /// R queries from `start`.
    #[inline(always)]
    fn strip<const R: usize>(
        &mut self,
        simd: Avx512,
        codes: &CodedQueries,
        start: usize,
        seen: Seen,
    ) {
        let Coded { keys, key_scales, value_scales, positions, len, .. } = &*self.coded;
        let mut weights = [[0f32; TOKENS]; R];
        // SAFETY: a value of `Avx512` proves the features.
        unsafe { dots(codes, keys, *len, &mut weights) };
        let mut factors = [0f32; R];
        for (r, (weights, factor)) in weights.iter_mut().zip(&mut factors).enumerate() {
            weights.iter_mut().zip(key_scales).for_each(|(score, scale)| *score *= scale);
            let visible = &self.queries.visible[start + r];
            let weigh = Weigh {
                scores: weights,
                positions,
                len: *len,
                visible: (!seen.inside(visible)).then_some(visible),
                largest: &mut self.partial.largest[start + r],
                sum: &mut self.partial.sums[start + r],
            };
            *factor = weigh.run(simd);
            weights.iter_mut().zip(value_scales).for_each(|(weight, scale)| *weight *= scale);
        }
        // SAFETY: as above.
        let weights = unsafe { CodedWeights::new(&weights) };
        self.values(start, &weights, &factors);
    }

    #[inline(always)]
    fn values<const R: usize>(
        &mut self,
        start: usize,
        weights: &CodedWeights<R>,
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
