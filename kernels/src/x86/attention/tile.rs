//! Some tokens of one head, decoded to f32: what the pages of all tiers look like to the products.

use std::ops::Range;

use half::f16;

use super::super::simd::{Op, Simd};
use crate::{
    Arena, PageRef,
    codec::{Format, NORMAL4},
    portable::segment::position,
};

/// Tokens of a tile: K and V of head size 64 are 16 KiB each and stay in L1.
pub const TOKENS: usize = 64;
/// Columns are padded to the widest vector.
const WIDEST: usize = 16;

/// Up to [`TOKENS`] decoded tokens. Rows and columns beyond them are finite and masked.
pub struct Tile {
    pub head_dim: usize,
    /// Head size, padded.
    pub stride: usize,
    /// (TOKENS, D), before the transposition.
    rows: Vec<f32>,
    /// (D, TOKENS)
    pub keys: Vec<f32>,
    /// (TOKENS, D)
    pub values: Vec<f32>,
    pub positions: [u32; TOKENS],
    pub len: usize,
}

/// Tokens `tokens` of a page.
struct Piece<'a> {
    page: &'a PageRef,
    tokens: Range<usize>,
}

impl Tile {
    pub fn new(head_dim: usize) -> Self {
        let stride = head_dim.next_multiple_of(WIDEST);
        let zeros = || vec![0f32; stride * TOKENS];
        Self {
            head_dim,
            stride,
            rows: zeros(),
            keys: zeros(),
            values: zeros(),
            positions: [0; TOKENS],
            len: 0,
        }
    }

    /// Calls `visit` with each tile of `pages` that has a token in `wanted`.
    #[inline(always)]
    pub fn each<S: Simd>(
        &mut self,
        simd: S,
        arena: &Arena,
        pages: &[PageRef],
        wanted: Range<u32>,
        mut visit: impl FnMut(&Tile),
    ) {
        let mut pieces = Vec::with_capacity(TOKENS);
        let mut len = 0;
        for page in pages {
            let mut next = 0;
            while next < usize::from(page.len) {
                let taken = (usize::from(page.len) - next).min(TOKENS - len);
                pieces.push(Piece { page, tokens: next..next + taken });
                (next, len) = (next + taken, len + taken);
                if len == TOKENS {
                    self.fill(simd, arena, &pieces, &wanted, &mut visit);
                    (pieces, len) = (Vec::with_capacity(TOKENS), 0);
                }
            }
        }
        if len > 0 {
            self.fill(simd, arena, &pieces, &wanted, &mut visit);
        }
    }

    #[inline(always)]
    fn fill<S: Simd>(
        &mut self,
        simd: S,
        arena: &Arena,
        pieces: &[Piece],
        wanted: &Range<u32>,
        visit: &mut impl FnMut(&Tile),
    ) {
        self.len = 0;
        for Piece { page, tokens } in pieces {
            let bytes = arena.page(page.page);
            for token in tokens.clone() {
                self.positions[self.len] = position(arena.layout(), bytes, page, token);
                self.len += 1;
            }
        }
        if !self.positions[..self.len].iter().any(|position| wanted.contains(position)) {
            return;
        }
        simd.vectorize(Load { tile: self, arena, pieces });
        visit(self);
    }
}

/// Decodes pieces of pages into a tile.
struct Load<'a> {
    tile: &'a mut Tile,
    arena: &'a Arena,
    pieces: &'a [Piece<'a>],
}

impl<S: Simd> Op<S> for Load<'_> {
    type Out = ();

    #[inline(always)]
    fn run(self, simd: S) {
        decode(simd, self.tile, self.arena, self.pieces);
        transpose(simd, self.tile);
    }
}

#[inline(always)]
fn decode<S: Simd>(simd: S, tile: &mut Tile, arena: &Arena, pieces: &[Piece]) {
    let mut start = 0;
    for Piece { page, tokens } in pieces {
        let bytes = arena.page(page.page);
        let at = arena.layout().arrays(page.tier);
        let info = page.tier.info();
        let len = tokens.len();
        let keys = Vectors::new(info.key, bytes, at.keys, at.key_scales, tokens.clone());
        keys.decode(simd, tile.head_dim, tile.stride, &mut tile.rows[start * tile.stride..]);
        let values = Vectors::new(info.value, bytes, at.values, at.value_scales, tokens.clone());
        let out = &mut tile.values[start * tile.stride..];
        values.decode(simd, tile.head_dim, tile.stride, out);
        start += len;
    }
}

#[inline(always)]
fn transpose<S: Simd>(simd: S, tile: &mut Tile) {
    let tokens = tile.len.next_multiple_of(S::LANES);
    assert!(tile.rows.len() >= tokens * tile.stride && tokens <= TOKENS);
    assert!(tile.keys.len() >= tile.stride * TOKENS && tile.stride.is_multiple_of(S::LANES));
    for token in (0..tokens).step_by(S::LANES) {
        for c in (0..tile.stride).step_by(S::LANES) {
            // SAFETY: both squares are inside the arrays, as just seen.
            unsafe {
                let from = tile.rows.as_ptr().add(token * tile.stride + c);
                let to = tile.keys.as_mut_ptr().add(c * TOKENS + token);
                simd.transpose(from, tile.stride, to, TOKENS);
            }
        }
    }
}

/// Some coded vectors of a page, K or V.
struct Vectors<'a> {
    format: Format,
    page: &'a [u8],
    codes: usize,
    scales: usize,
    tokens: Range<usize>,
}

impl<'a> Vectors<'a> {
    #[inline(always)]
    fn new(
        format: Format,
        page: &'a [u8],
        codes: usize,
        scales: usize,
        tokens: Range<usize>,
    ) -> Self {
        Self { format, page, codes, scales, tokens }
    }

    /// Decodes to rows of `out`.
    #[inline(always)]
    fn decode<S: Simd>(self, simd: S, dim: usize, stride: usize, out: &mut [f32]) {
        let len = self.format.vector_bytes(dim);
        for (token, out) in self.tokens.zip(out.chunks_exact_mut(stride)) {
            let codes = &self.page[self.codes + token * len..][..len];
            let scale = match self.format.scale_bytes() {
                0 => f16::ONE,
                _ => {
                    let at = self.scales + 2 * token;
                    f16::from_le_bytes([self.page[at], self.page[at + 1]])
                }
            };
            decode_vector(simd, self.format, codes, scale, &mut out[..dim]);
        }
    }
}

/// [`Format::decode`]
#[inline(always)]
pub fn decode_vector<S: Simd>(simd: S, format: Format, codes: &[u8], scale: f16, out: &mut [f32]) {
    let dim = out.len();
    if !dim.is_multiple_of(2 * S::LANES) {
        return format.decode(codes, scale, out);
    }
    assert!(codes.len() == format.vector_bytes(dim));
    let factor = simd.splat(if format == Format::F16 { 1.0 } else { scale.to_f32() });
    let (from, to) = (codes.as_ptr(), out.as_mut_ptr());
    // SAFETY: the codes of `dim` channels and `dim` floats, a multiple of 2 * LANES.
    unsafe {
        match format {
            Format::F16 => {
                for i in (0..dim).step_by(S::LANES) {
                    simd.store(to.add(i), simd.load_f16(from.add(2 * i)));
                }
            }
            Format::Int8 => {
                for i in (0..dim).step_by(S::LANES) {
                    simd.store(to.add(i), simd.mul(factor, simd.load_i8(from.add(i))));
                }
            }
            Format::Normal4 => {
                for i in (0..dim / 2).step_by(S::LANES) {
                    let (low, high) = simd.load_levels(from.add(i), &NORMAL4);
                    simd.store(to.add(i), simd.mul(factor, low));
                    simd.store(to.add(dim / 2 + i), simd.mul(factor, high));
                }
            }
        }
    }
}
