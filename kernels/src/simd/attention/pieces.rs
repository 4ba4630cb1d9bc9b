//! The tokens of some pages, in groups of a size that the kernels work on.

use std::ops::Range;

use smallvec::SmallVec;

use super::direct::Side;
use crate::{Arena, PageRef, simd::Simd};

/// Tokens of a group: K and V of head size 64, decoded, are 16 KiB each and stay in L1.
pub const TOKENS: usize = 64;
/// Pages asked for from memory before their turn, at least so many and with at least so many tokens: they
/// lie anywhere, so the hardware cannot guess.
const PAGES_AHEAD: usize = 4;
const TOKENS_AHEAD: usize = 96;

/// Pieces of most groups: more are kept outside the stack.
const PIECES: usize = 8;

/// Tokens `tokens` of a page.
pub struct Piece<'a> {
    pub page: &'a PageRef,
    pub tokens: Range<usize>,
    /// What to ask for from memory meanwhile: a later page's part as large as this one.
    pub ahead: &'a [u8],
}

impl<'a> Piece<'a> {
    /// What to ask for while the keys are read, and while the values are: half of it each, for memory
    /// has as much to do all the time.
    #[inline(always)]
    pub fn ahead_of(&self, side: Side) -> &'a [u8] {
        let (first, second) = self.ahead.split_at(self.ahead.len() / 2);
        if side == Side::Keys { first } else { second }
    }

    #[inline(always)]
    fn positions(&self, arena: &Arena, out: &mut [u32]) {
        let start = arena.layout().arrays(self.page.tier).positions + 2 * self.tokens.start;
        let (offsets, _) = arena.page(self.page.page)[start..].as_chunks::<2>();
        for (out, offset) in out.iter_mut().zip(offsets) {
            *out = self.page.base.wrapping_add_signed(i32::from(i16::from_le_bytes(*offset)));
        }
    }
}

/// Calls `visit` with all tokens of `pages`, [`TOKENS`] at a time.
#[inline(always)]
pub fn each_group<S: Simd>(
    simd: S,
    arena: &Arena,
    pages: &[PageRef],
    mut visit: impl FnMut(&[Piece]),
) {
    let Some(first) = pages.first() else { return };
    let num_ahead = (TOKENS_AHEAD / arena.layout().capacity(first.tier)).max(PAGES_AHEAD);
    for page in pages.iter().take(num_ahead) {
        simd.prefetch(arena.page(page.page));
    }
    let mut pieces = SmallVec::<[Piece; PIECES]>::new();
    let mut len = 0;
    for (index, page) in pages.iter().enumerate() {
        let ahead = pages.get(index + num_ahead).map_or(&[][..], |ahead| arena.page(ahead.page));
        let mut next = 0;
        while next < usize::from(page.len) {
            let taken = (usize::from(page.len) - next).min(TOKENS - len);
            let part = if taken == usize::from(page.len) {
                ahead
            } else {
                let of_ahead = |token: usize| ahead.len() * token / usize::from(page.len);
                &ahead[of_ahead(next)..of_ahead(next + taken)]
            };
            pieces.push(Piece { page, tokens: next..next + taken, ahead: part });
            (next, len) = (next + taken, len + taken);
            if len == TOKENS {
                visit(&pieces);
                pieces.clear();
                len = 0;
            }
        }
    }
    if len > 0 {
        visit(&pieces);
    }
}

/// Writes the positions of a group and returns its number of tokens.
#[inline(always)]
pub fn positions(arena: &Arena, pieces: &[Piece], out: &mut [u32; TOKENS]) -> usize {
    let mut len = 0;
    for piece in pieces {
        let out = &mut out[len..][..piece.tokens.len()];
        piece.positions(arena, out);
        len += out.len();
    }
    len
}
