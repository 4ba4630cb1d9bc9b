//! Some tokens of one head, decoded to f32: what the pages of all tiers look like to the products.

use std::ops::Range;

use super::pieces::{Pages, Piece, TOKENS, each_group, positions};
use crate::{
    Arena,
    codec::Format,
    simd::{Op, Simd},
};

/// Columns are padded to the widest vector.
const WIDEST: usize = 16;

/// Up to [`TOKENS`] decoded tokens. Rows and columns beyond them are finite and masked.
pub struct Tile {
    pub head_dim: usize,
    /// Head size, padded.
    pub stride: usize,
    /// (TOKENS, D), before the transposition.
    rows: Vec<f32>,
    /// Signed bytes of a page's vectors.
    unpacked: Vec<u8>,
    /// (D, TOKENS)
    pub keys: Vec<f32>,
    /// (TOKENS, D)
    pub values: Vec<f32>,
    pub positions: [u32; TOKENS],
    /// Number of the first token, counted from the first of the pages.
    pub start: usize,
    pub len: usize,
}

impl Tile {
    pub fn new(head_dim: usize) -> Self {
        let stride = head_dim.next_multiple_of(WIDEST);
        let zeros = || vec![0f32; stride * TOKENS];
        Self {
            head_dim,
            stride,
            rows: zeros(),
            unpacked: Vec::new(),
            keys: zeros(),
            values: zeros(),
            positions: [0; TOKENS],
            start: 0,
            len: 0,
        }
    }

    /// Calls `visit` with each tile of `pages` that has a token in `wanted`.
    #[inline(always)]
    pub fn each<S: Simd>(
        &mut self,
        simd: S,
        arena: &Arena,
        pages: Pages,
        wanted: Range<u32>,
        mut visit: impl FnMut(&Tile),
    ) {
        (self.start, self.len) = (0, 0);
        each_group(simd, arena, pages, |pieces| {
            self.fill(simd, arena, pieces, &wanted, &mut visit);
        });
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
        self.start += self.len;
        self.len = positions(arena, pieces, &mut self.positions);
        if !self.positions[..self.len].iter().any(|position| wanted.contains(position)) {
            pieces.iter().for_each(|piece| simd.prefetch(piece.ahead));
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
        let Tile { rows, keys, stride, len, .. } = self.tile;
        transpose(simd, rows, keys, *stride, *len);
    }
}

#[inline(always)]
fn decode<S: Simd>(simd: S, tile: &mut Tile, arena: &Arena, pieces: &[Piece]) {
    let mut start = 0;
    for Piece { page, bytes, tokens, ahead } in pieces {
        simd.prefetch(ahead);
        let at = arena.layout().arrays(page.tier);
        let info = page.tier.info();
        let len = tokens.len();
        let vectors = |format, codes, scales| {
            let tokens = tokens.clone();
            Vectors { format, page: bytes, codes, scales, tokens }
        };
        let keys = vectors(info.key, at.keys, at.key_scales);
        let dims = (tile.head_dim, tile.stride);
        keys.decode(simd, dims, &mut tile.rows[start * tile.stride..], &mut tile.unpacked);
        let values = vectors(info.value, at.values, at.value_scales);
        let out = &mut tile.values[start * tile.stride..];
        values.decode(simd, dims, out, &mut tile.unpacked);
        start += len;
    }
}

/// Rows of channels to rows of tokens: from (tokens, stride) to (stride, TOKENS).
#[inline(always)]
pub fn transpose<S: Simd>(simd: S, rows: &[f32], out: &mut [f32], stride: usize, len: usize) {
    let tokens = len.next_multiple_of(S::LANES);
    assert!(rows.len() >= tokens * stride && tokens <= TOKENS);
    assert!(out.len() >= stride * TOKENS && stride.is_multiple_of(S::LANES));
    for token in (0..tokens).step_by(S::LANES) {
        for c in (0..stride).step_by(S::LANES) {
            // SAFETY: both squares are inside the arrays, as just seen.
            unsafe {
                let from = rows.as_ptr().add(token * stride + c);
                let to = out.as_mut_ptr().add(c * TOKENS + token);
                simd.transpose(from, stride, to, TOKENS);
            }
        }
    }
}

/// Some coded vectors of a page, K or V.
pub struct Vectors<'a> {
    pub format: Format,
    pub page: &'a [u8],
    pub codes: usize,
    pub scales: usize,
    pub tokens: Range<usize>,
}

impl Vectors<'_> {
    /// Decodes to rows of `out`: [`Format::decode`]. `unpacked` is room to work in.
    #[inline(always)]
    pub fn decode<S: Simd>(
        &self,
        simd: S,
        (dim, stride): (usize, usize),
        out: &mut [f32],
        unpacked: &mut Vec<u8>,
    ) {
        let Self { format, page, codes, ref tokens, .. } = *self;
        let len = format.vector_bytes(dim);
        if !dim.is_multiple_of(2 * S::LANES) {
            for (token, out) in tokens.clone().zip(out.chunks_exact_mut(stride)) {
                let codes = &page[codes + token * len..][..len];
                format.decode(codes, page[self.scales + token], &mut out[..dim]);
            }
            return;
        }
        assert!(codes + tokens.end * len <= page.len());
        assert!(dim <= stride && tokens.len() * stride <= out.len());
        let (mut codes, mut len) = (&page[codes + tokens.start * len..], len);
        if let Format::Levels(_) = format {
            unpacked.resize(tokens.len() * dim, 0);
            simd.unpack(format, dim, codes, unpacked);
            (codes, len) = (unpacked, dim);
        }
        for (i, (token, from)) in tokens.clone().zip(codes.chunks_exact(len)).enumerate() {
            let step = simd.splat(format.step(page[self.scales + token]));
            let from = from.as_ptr();
            // SAFETY: codes and floats of whole vectors inside their slices, as just seen.
            unsafe {
                let to = out.as_mut_ptr().add(i * stride);
                match format {
                    Format::F16 => f16s(simd, dim, from, to),
                    Format::Int8 | Format::Levels(_) => int8s(simd, dim, from, step, to),
                }
            }
        }
    }
}

/// # Safety
/// `from` points to the codes of `dim` channels, `to` to `dim` floats, a multiple of 2 * LANES. The
/// same holds for the other formats.
#[inline(always)]
unsafe fn f16s<S: Simd>(simd: S, dim: usize, from: *const u8, to: *mut f32) {
    for i in (0..dim).step_by(S::LANES) {
        // SAFETY: i + LANES <= dim.
        unsafe { simd.store(to.add(i), simd.load_f16(from.add(2 * i))) };
    }
}

#[inline(always)]
unsafe fn int8s<S: Simd>(simd: S, dim: usize, from: *const u8, scale: S::V, to: *mut f32) {
    for i in (0..dim).step_by(S::LANES) {
        // SAFETY: i + LANES <= dim.
        unsafe { simd.store(to.add(i), simd.mul(scale, simd.load_i8(from.add(i)))) };
    }
}
