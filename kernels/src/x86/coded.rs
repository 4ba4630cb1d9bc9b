//! Attention of a few queries over coded pages, in integers.
//!
//! The codes of a group of tokens become levels of 8 bits, turned so that one instruction multiplies
//! four channels of 16 keys, or four tokens of 16 channels: no sum runs across a register. The rest
//! does not know the format. Where activations of 8 bits are asked for, many queries take this way too,
//! and the floats of F16 pages become integers: keys of 16 bits ([`super::pairs`]), values of 8.

use std::{arch::x86_64::*, ops::Range};

use super::{
    Avx512,
    floats::{LARGEST_LEVEL, LARGEST_WORD, Vectors},
    integer::{CodedQueries, LANES, Outputs, WIDTH, dots, interleave_values, transpose_keys},
    pairs::PairedQueries,
    spread::{Line, Spread, Wanted},
    weights::{CodedWeights, Running, Tokens},
};
use crate::{
    ActivationBits, Arena, PageRef,
    codec::Format,
    page::{PerTier, Tier},
    simd::{
        Op, Simd,
        attention::{
            direct::Side,
            pieces::{Piece, TOKENS, each_group},
            softmax::{Partial, Queries, Seen},
        },
    },
};

/// What proves that codes can be multiplied as integers.
pub type Wide = Avx512;

/// Queries whose sums stay in registers.
pub const STRIP: usize = 4;

/// Queries in integers, [`STRIP`] at a time, in memory that stays for the next ones.
#[derive(Default)]
pub struct QueryCodes {
    /// For coded pages, where activations have 8 bits; weights have 8 too then.
    sixteen: Vec<CodedQueries<2>>,
    /// The same for pages of F16, if there are many queries.
    paired: Vec<PairedQueries>,
    /// For coded pages otherwise; weights have 24 bits too then.
    twenty_four: Vec<CodedQueries<3>>,
}

impl QueryCodes {
    /// Holds `data` (queries, D), in as many bits as activations shall keep.
    pub fn fill(&mut self, simd: Avx512, data: &[f32], head_dim: usize, are_many: bool) {
        let is_coarse = simd.activations == ActivationBits::Eight;
        let if_so = |so| if so { data } else { &[] };
        // SAFETY of all three: a value of `Avx512` proves the features.
        each_strip(&mut self.sixteen, if_so(is_coarse), head_dim, |strip, data| unsafe {
            strip.fill(data, head_dim);
        });
        each_strip(
            &mut self.paired,
            if_so(is_coarse && are_many),
            head_dim,
            |strip, data| unsafe {
                strip.fill(data, head_dim);
            },
        );
        each_strip(&mut self.twenty_four, if_so(!is_coarse), head_dim, |strip, data| unsafe {
            strip.fill(data, head_dim);
        });
    }
}

/// As many strips as `data` (queries, D) has.
fn each_strip<S: Default>(
    strips: &mut Vec<S>,
    data: &[f32],
    head_dim: usize,
    fill: impl Fn(&mut S, &[f32]),
) {
    let data = data.chunks(STRIP * head_dim);
    strips.resize_with(data.len(), S::default);
    strips.iter_mut().zip(data).for_each(|(strip, data)| fill(strip, data));
}

/// Whether many queries are better multiplied as integers too: not in 24 bits, which take as many
/// products as f32.
pub fn serves_many(simd: Avx512) -> bool {
    simd.activations == ActivationBits::Eight
}

/// Some queries in integers, and the keys that go with them.
trait Strip {
    fn len(&self) -> usize;

    /// Makes the keys of all pieces ready for [`Strip::dots`].
    fn turn(simd: Avx512, coded: &mut Coded, arena: &Arena, pieces: &[Piece]);

    /// Scores of R queries, before the keys' scales.
    fn dots<const R: usize>(&self, simd: Avx512, coded: &Coded, scores: &mut [[f32; TOKENS]; R]);
}

impl<const B: usize> Strip for CodedQueries<B> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.len
    }

    #[inline(always)]
    fn turn(simd: Avx512, coded: &mut Coded, arena: &Arena, pieces: &[Piece]) {
        coded.turn(simd, arena, pieces, Side::Keys);
    }

    #[inline(always)]
    fn dots<const R: usize>(&self, _: Avx512, coded: &Coded, scores: &mut [[f32; TOKENS]; R]) {
        // SAFETY: a value of `Avx512` proves the features.
        unsafe { dots(self, coded.levels(), coded.len, scores) };
    }
}

impl Strip for PairedQueries {
    #[inline(always)]
    fn len(&self) -> usize {
        self.len
    }

    #[inline(always)]
    fn turn(simd: Avx512, coded: &mut Coded, arena: &Arena, pieces: &[Piece]) {
        for i in 0..2 * coded.head_dim / WIDTH {
            coded.load_words(arena, pieces, i);
            let lines = &mut coded.keys[i * TOKENS..(i + 1) * TOKENS];
            // SAFETY: a value of `Avx512` proves the features.
            unsafe { transpose_keys(simd, &coded.rows, coded.len, lines) };
        }
    }

    #[inline(always)]
    fn dots<const R: usize>(&self, _: Avx512, coded: &Coded, scores: &mut [[f32; TOKENS]; R]) {
        // SAFETY: a value of `Avx512` proves the features.
        unsafe { self.dots(&coded.keys, coded.len, scores) };
    }
}

/// One figure for each token of a group, with room for a whole vector from any of them: what a masked
/// store wrote can only be loaded once it has reached the cache.
type Padded<T> = [T; TOKENS + LANES];

/// The figures of a group.
#[inline(always)]
pub fn group<T>(padded: &Padded<T>) -> &[T; TOKENS] {
    padded.first_chunk().expect("padding comes last")
}

/// What a thread works in.
pub struct Coded {
    pub head_dim: usize,
    /// Levels of one register of each token.
    pub rows: Box<[Line; TOKENS]>,
    /// (registers, groups of 4 channels, tokens), unsigned; or of 2 channels of 16 bits.
    pub keys: Vec<Line>,
    /// (registers, fours of tokens, 4 lines)
    values: Vec<Line>,
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
        let lines = vec![Line::ZERO; head_dim.div_ceil(WIDTH) * TOKENS];
        Self {
            head_dim,
            rows: Box::new([Line::ZERO; TOKENS]),
            keys: [&lines[..], &lines].concat(),
            values: lines,
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
        pages: &[PageRef],
        (queries, codes): (&Queries, &QueryCodes),
        partial: &mut Partial,
    ) {
        let is_float = pages.first().is_some_and(|page| page.tier == Tier::F16);
        each_group(simd, arena, pages, |pieces| {
            let step = Group { coded: self, arena, pieces, queries, partial };
            match simd.activations {
                ActivationBits::Eight if is_float => {
                    simd.vectorize(Attend::<_, 1> { group: step, strips: &codes.paired });
                }
                ActivationBits::Eight => {
                    simd.vectorize(Attend::<_, 1> { group: step, strips: &codes.sixteen });
                }
                ActivationBits::Sixteen => {
                    simd.vectorize(Attend::<_, 3> { group: step, strips: &codes.twenty_four });
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
    pub fn turn(&mut self, simd: Avx512, arena: &Arena, pieces: &[Piece], side: Side) {
        for i in 0..self.head_dim / WIDTH {
            self.load(arena, pieces, i, side, 128);
            let lines = &mut self.keys[i * TOKENS..(i + 1) * TOKENS];
            // SAFETY: a value of `Avx512` proves the features.
            unsafe { transpose_keys(simd, &self.rows, self.len, lines) };
        }
    }

    /// Levels of the K or V of all pieces, channels of register `i`; `flip` 128 makes them unsigned.
    #[inline(always)]
    fn load(&mut self, arena: &Arena, pieces: &[Piece], i: usize, side: Side, flip: u8) {
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
            let wanted = Wanted { flip, ahead: ahead(piece, i, side) };
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
    fn load_words(&mut self, arena: &Arena, pieces: &[Piece], i: usize) {
        let mut next = 0;
        for piece in pieces {
            let (_, codes) = Side::Keys.codes(arena, piece);
            let range = next..next + piece.tokens.len();
            let vectors = Vectors { codes, dim: self.head_dim };
            let rows = &mut self.rows[range.clone()];
            let ahead = ahead(piece, i, Side::Keys);
            // SAFETY: the caller runs with AVX-512 BW.
            unsafe { vectors.to_words(i, &self.key_scales[range], ahead, rows) };
            next += piece.tokens.len();
        }
    }

    /// Positions of the tokens of all pieces, and their number.
    #[inline(always)]
    pub fn locate(&mut self, arena: &Arena, pieces: &[Piece]) -> Seen {
        self.len = 0;
        // SAFETY: the caller runs with AVX-512.
        let mut span = unsafe { Span::new() };
        for Piece { page, tokens, .. } in pieces {
            let start = arena.layout().arrays(page.tier).positions + 2 * tokens.start;
            let offsets = &arena.page(page.page)[start..][..2 * tokens.len()];
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
            let Piece { page, tokens, .. } = piece;
            let at = arena.layout().arrays(page.tier);
            for (side, scales, largest, out) in [
                (Side::Keys, at.key_scales, LARGEST_WORD, &mut self.key_scales),
                (Side::Values, at.value_scales, LARGEST_LEVEL, &mut self.value_scales),
            ] {
                let (format, codes) = side.codes(arena, piece);
                let out = &mut out[next..];
                if format == Format::F16 {
                    let vectors = Vectors { codes, dim: self.head_dim };
                    // SAFETY: the caller runs with AVX-512.
                    unsafe { vectors.to_steps(largest, &mut out[..tokens.len()]) };
                } else {
                    to_steps(format, &arena.page(page.page)[scales..][tokens.clone()], out);
                }
            }
            next += tokens.len();
        }
    }
}

/// What to ask for from memory with register `i`: half of it with the keys and half with the values.
#[inline(always)]
fn ahead<'a>(piece: &Piece<'a>, i: usize, side: Side) -> &'a [u8] {
    let (first, second) = piece.ahead.split_at(piece.ahead.len() / 2);
    match (i, side) {
        (0, Side::Keys) => first,
        (0, Side::Values) => second,
        _ => &[],
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

/// Some tokens, for all queries.
struct Group<'a> {
    coded: &'a mut Coded,
    arena: &'a Arena,
    pieces: &'a [Piece<'a>],
    queries: &'a Queries,
    partial: &'a mut Partial,
}

/// A group and its queries in integers, [`STRIP`] each; weights have W bytes.
struct Attend<'a, S, const W: usize> {
    group: Group<'a>,
    strips: &'a [S],
}

impl<S: Strip, const W: usize> Op<Avx512> for Attend<'_, S, W> {
    type Out = ();

    #[inline(always)]
    fn run(self, simd: Avx512) {
        let Self { mut group, strips } = self;
        let Group { coded, arena, pieces, queries, .. } = &mut group;
        let seen = coded.locate(arena, pieces);
        let overlaps = |visible: &[Range<u32>]| visible.iter().any(|range| seen.overlaps(range));
        if !overlaps(&queries.visible) {
            pieces.iter().for_each(|piece| simd.prefetch(piece.ahead));
            return;
        }
        coded.scales(arena, pieces);
        S::turn(simd, coded, arena, pieces);
        for i in 0..coded.head_dim / WIDTH {
            coded.load(arena, pieces, i, Side::Values, 0);
            let lines = &mut coded.values[i * TOKENS..(i + 1) * TOKENS];
            // SAFETY: a value of `Avx512` proves the features.
            unsafe { interleave_values(&coded.rows, coded.len, lines) };
        }
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
