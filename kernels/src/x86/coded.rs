//! A group of tokens in integers, for attention over coded pages.
//!
//! The codes of a group of tokens become levels of 8 bits, turned so that one instruction multiplies
//! four channels of 16 keys, or four tokens of 16 channels: no sum runs across a register. The rest
//! does not know the format. Where activations of 8 bits are asked for, many queries take this way too,
//! and the floats of F16 pages become integers: keys of 16 bits ([`super::pairs`]), values of 8.

use std::arch::x86_64::*;

use super::{
    Avx512,
    coded_attention::{Attend, Group},
    floats::{LARGEST_LEVEL, LARGEST_WORD, Vectors},
    integer::{LANES, WIDTH, interleave_values, transpose_keys},
    spread::{Line, Spread, Wanted},
};
use crate::{
    ActivationBits, Arena,
    codec::Format,
    page::{PerTier, Tier},
    simd::{
        Simd,
        attention::{
            direct::Side,
            pieces::{Ahead, Pages, Piece, TOKENS, each_group},
            softmax::{Partial, Queries, Seen},
        },
    },
};

pub use super::query_codes::{QueryCodes, serves_many};

/// What proves that codes can be multiplied as integers.
pub type Wide = Avx512;

/// Queries whose sums stay in registers.
pub const STRIP: usize = 4;

/// One figure for each token of a group, with room for a whole vector from any of them: what a masked
/// store wrote can only be loaded once it has reached the cache.
type Padded<T> = [T; TOKENS + LANES];

/// The figures of a group.
#[inline(always)]
fn group<T>(padded: &Padded<T>) -> &[T; TOKENS] {
    padded.first_chunk().expect("padding comes last")
}

/// What a thread works in.
pub struct Coded {
    pub head_dim: usize,
    /// Levels of one register of each token.
    rows: Box<[Line; TOKENS]>,
    /// (registers, groups of 4 channels, tokens), unsigned; or of 2 channels of 16 bits.
    pub keys: Vec<Line>,
    /// (registers, fours of tokens, 4 lines)
    pub values: Vec<Line>,
    /// Of the last group that was located.
    positions: Padded<u32>,
    key_scales: Padded<f32>,
    value_scales: Padded<f32>,
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
        let lines = |registers| vec![Line::ZERO; registers * TOKENS];
        let registers = head_dim.div_ceil(WIDTH);
        Self {
            head_dim,
            rows: Box::new([Line::ZERO; TOKENS]),
            keys: lines(2 * registers),
            values: lines(registers),
            positions: [0; _],
            key_scales: [0.0; _],
            value_scales: [0.0; _],
            len: 0,
            spreads: PerTier::new(|tier| Spreads::new(tier, head_dim)),
        }
    }

    /// Adds the tokens of `pages`, all of F16 or none, and only none if queries have 24 bits. `codes`
    /// are those of `queries`.
    pub fn attend(
        &mut self,
        simd: Avx512,
        arena: &Arena,
        pages: Pages,
        (queries, codes): (&Queries, &QueryCodes),
        partial: &mut Partial,
    ) {
        let is_float = pages.visited().first().is_some_and(|page| page.tier == Tier::F16);
        each_group(simd, arena, pages, |pieces| {
            let ahead = Ahead::new(pieces);
            let coded = &mut *self;
            let group = &mut Group { coded, arena, pieces, ahead, queries, partial };
            match simd.activations {
                ActivationBits::Eight if is_float => {
                    simd.vectorize(Attend::<_, 1> { group, strips: &codes.paired });
                }
                ActivationBits::Eight => {
                    simd.vectorize(Attend::<_, 1> { group, strips: &codes.sixteen });
                }
                ActivationBits::Sixteen => {
                    simd.vectorize(Attend::<_, 3> { group, strips: &codes.twenty_four });
                }
            }
        });
    }

    /// Levels of 8 bits that were turned: keys of 16 bits take twice as many lines.
    pub fn levels(&self) -> &[Line] {
        &self.keys[..self.head_dim / WIDTH * TOKENS]
    }

    /// The tokens' K or V, turned as [`dots`] reads them.
    #[inline(always)]
    pub fn turn(
        &mut self,
        simd: Avx512,
        (arena, pieces): (&Arena, &[Piece]),
        side: Side,
        ahead: &mut Ahead,
    ) {
        for i in 0..self.head_dim / WIDTH {
            let wanted = Wanted { simd, flip: 128, ahead };
            self.load((arena, pieces), i, side, wanted);
            let lines = &mut self.keys[i * TOKENS..(i + 1) * TOKENS];
            // SAFETY: a value of `Avx512` proves the features.
            unsafe { transpose_keys(simd, &self.rows, self.len, lines) };
        }
    }

    /// The keys of F16 pages in 16 bits, turned as [`super::pairs`] reads them.
    #[inline(always)]
    pub fn turn_words(
        &mut self,
        simd: Avx512,
        (arena, pieces): (&Arena, &[Piece]),
        ahead: &mut Ahead,
    ) {
        for i in 0..2 * self.head_dim / WIDTH {
            self.load_words((arena, pieces), i, (simd, ahead));
            let lines = &mut self.keys[i * TOKENS..(i + 1) * TOKENS];
            // SAFETY: a value of `Avx512` proves the features.
            unsafe { transpose_keys(simd, &self.rows, self.len, lines) };
        }
    }

    /// The tokens' V, four tokens of a channel side by side.
    #[inline(always)]
    pub fn interleave(
        &mut self,
        simd: Avx512,
        (arena, pieces): (&Arena, &[Piece]),
        ahead: &mut Ahead,
    ) {
        for i in 0..self.head_dim / WIDTH {
            let wanted = Wanted { simd, flip: 0, ahead };
            self.load((arena, pieces), i, Side::Values, wanted);
            let lines = &mut self.values[i * TOKENS..(i + 1) * TOKENS];
            // SAFETY: a value of `Avx512` proves the features.
            unsafe { interleave_values(&self.rows, self.len, lines) };
        }
    }

    /// Levels of the K or V of all pieces, channels of register `i`.
    #[inline(always)]
    fn load(
        &mut self,
        (arena, pieces): (&Arena, &[Piece]),
        i: usize,
        side: Side,
        Wanted { simd, flip, ahead }: Wanted,
    ) {
        let mut next = 0;
        for piece in pieces {
            let tier = piece.page.tier;
            let (spreads, scales) = match side {
                Side::Keys => (&self.spreads[tier].keys, &self.key_scales),
                Side::Values => (&self.spreads[tier].values, &self.value_scales),
            };
            let (_, codes) = side.codes(arena, piece);
            let range = next..next + piece.tokens.len();
            let rows = &mut self.rows[range.clone()];
            let wanted = Wanted { simd, flip, ahead };
            // SAFETY: the caller runs with AVX-512 BW and VBMI.
            unsafe {
                match spreads.get(i) {
                    Some(spread) => spread.unpack(codes, wanted, rows),
                    None => {
                        let vectors = Vectors { codes, dim: self.head_dim };
                        vectors.to_levels(i, &scales[range], wanted, rows);
                    }
                }
            }
            next += piece.tokens.len();
        }
    }

    /// Keys of F16 pages in 16 bits, channels of register `i`.
    #[inline(always)]
    fn load_words(
        &mut self,
        (arena, pieces): (&Arena, &[Piece]),
        i: usize,
        (simd, ahead): (Avx512, &mut Ahead),
    ) {
        let mut next = 0;
        for piece in pieces {
            let (_, codes) = Side::Keys.codes(arena, piece);
            let range = next..next + piece.tokens.len();
            let vectors = Vectors { codes, dim: self.head_dim };
            let rows = &mut self.rows[range.clone()];
            // SAFETY: the caller runs with AVX-512 BW.
            unsafe { vectors.to_words(i, &self.key_scales[range], (simd, ahead), rows) };
            next += piece.tokens.len();
        }
    }

    /// Positions of the tokens of all pieces, and their number.
    #[inline(always)]
    pub fn locate(&mut self, arena: &Arena, pieces: &[Piece]) -> Seen {
        self.len = 0;
        // SAFETY: the caller runs with AVX-512.
        let mut span = unsafe { Span::new() };
        for Piece { page, bytes, tokens, .. } in pieces {
            let start = arena.layout().arrays(page.tier).positions + 2 * tokens.start;
            let offsets = &bytes[start..][..2 * tokens.len()];
            // SAFETY: as above.
            unsafe { span.put(page.base, offsets, &mut self.positions[self.len..]) };
            self.len += tokens.len();
        }
        // SAFETY: as above.
        unsafe { span.seen() }
    }

    pub fn key_scales(&self) -> &[f32; TOKENS] {
        group(&self.key_scales)
    }

    pub fn value_scales(&self) -> &[f32; TOKENS] {
        group(&self.value_scales)
    }

    pub fn positions(&self) -> &[u32; TOKENS] {
        group(&self.positions)
    }

    #[inline(always)]
    pub fn scales(&mut self, arena: &Arena, pieces: &[Piece]) {
        let mut next = 0;
        for piece in pieces {
            let Piece { page, bytes, tokens, .. } = piece;
            let (info, at) = (page.tier.info(), arena.layout().arrays(page.tier));
            for (side, format, scales, largest, out) in [
                (Side::Keys, info.key, at.key_scales, LARGEST_WORD, &mut self.key_scales),
                (Side::Values, info.value, at.value_scales, LARGEST_LEVEL, &mut self.value_scales),
            ] {
                let out = &mut out[next..];
                if format == Format::F16 {
                    let (_, codes) = side.codes(arena, piece);
                    let vectors = Vectors { codes, dim: self.head_dim };
                    // SAFETY: the caller runs with AVX-512.
                    unsafe { vectors.to_steps(largest, &mut out[..tokens.len()]) };
                } else {
                    to_steps(format, &bytes[scales..][tokens.clone()], out);
                }
            }
            next += tokens.len();
        }
    }
}

/// [`Format::step`] of each scale: an f16 whose upper byte it is, but for the sign. Writes whole vectors.
#[inline(always)]
fn to_steps(format: Format, scales: &[u8], out: &mut [f32]) {
    for (i, scales) in scales.chunks(LANES).enumerate() {
        let lanes = ((1u32 << scales.len()) - 1) as u16;
        let out = &mut out[i * LANES..][..LANES];
        // SAFETY: the caller runs with AVX-512 BW and VL; masked lanes are not touched.
        unsafe {
            let bytes = _mm_maskz_loadu_epi8(lanes, scales.as_ptr().cast());
            let halves = _mm256_slli_epi16::<7>(_mm256_cvtepu8_epi16(bytes));
            let steps = _mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(format.unit()));
            _mm512_storeu_ps(out.as_mut_ptr(), steps);
        }
    }
}

/// The least and the largest position so far, by lanes.
struct Span {
    first: __m512i,
    last: __m512i,
}

impl Span {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new() -> Self {
        Self { first: _mm512_set1_epi32(-1), last: _mm512_setzero_si512() }
    }

    /// Positions by their offsets of 16 bits from `base`. Writes whole vectors.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn put(&mut self, base: u32, offsets: &[u8], out: &mut [u32]) {
        for (i, offsets) in offsets.chunks(2 * LANES).enumerate() {
            let lanes = ((1u32 << (offsets.len() / 2)) - 1) as __mmask16;
            let out = &mut out[i * LANES..][..LANES];
            // SAFETY: masked lanes are not touched; 16 positions are written.
            unsafe {
                let offsets = _mm256_maskz_loadu_epi16(lanes, offsets.as_ptr().cast());
                let base = _mm512_set1_epi32(base as i32);
                let positions = _mm512_add_epi32(base, _mm512_cvtepi16_epi32(offsets));
                self.first = _mm512_mask_min_epu32(self.first, lanes, self.first, positions);
                self.last = _mm512_mask_max_epu32(self.last, lanes, self.last, positions);
                _mm512_storeu_epi32(out.as_mut_ptr().cast(), positions);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn seen(self) -> Seen {
        Seen {
            first: _mm512_reduce_min_epu32(self.first),
            last: _mm512_reduce_max_epu32(self.last),
        }
    }
}
