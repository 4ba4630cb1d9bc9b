//! The tokens of some pages, in groups of a size that the kernels work on.

use std::ops::Range;

use smallvec::SmallVec;

use crate::{
    Arena, PageRef, Tier,
    simd::{LINE, Simd},
};

/// Tokens of a group: K and V of head size 64, decoded, are 16 KiB each and stay in L1.
pub const TOKENS: usize = 64;
/// Pages asked for from memory before their turn, at least so many and with at least so many tokens: they
/// lie anywhere, so the hardware cannot guess.
const PAGES_AHEAD: usize = 4;
const TOKENS_AHEAD: usize = 96;

/// Pieces of most groups: more are kept outside the stack.
const PIECES: usize = 8;

/// Pages to visit in turn, and those whose turn comes then: they are asked for from memory meanwhile.
#[derive(Clone, Copy)]
pub struct Pages<'a> {
    all: &'a [PageRef],
    len: usize,
}

impl<'a> Pages<'a> {
    /// Those of `range`.
    pub fn new(all: &'a [PageRef], range: Range<usize>) -> Self {
        Self { all: &all[range.start..], len: range.len() }
    }

    pub fn visited(self) -> &'a [PageRef] {
        &self.all[..self.len]
    }

    /// Cut between floats and codes, and whether each run is of floats.
    pub fn runs(self) -> impl Iterator<Item = (bool, Self)> {
        let is_float = |page: &PageRef| page.tier == Tier::F16;
        let mut next = 0;
        self.visited().chunk_by(move |a, b| is_float(a) == is_float(b)).map(move |run| {
            let start = next;
            next += run.len();
            (is_float(&run[0]), Self::new(self.all, start..next))
        })
    }
}

/// Tokens `tokens` of a page.
pub struct Piece<'a> {
    pub page: &'a PageRef,
    /// All of the page.
    pub bytes: &'a [u8],
    pub tokens: Range<usize>,
    /// What to ask for from memory meanwhile: a later page's part as large as this one.
    pub ahead: &'a [u8],
}

impl Piece<'_> {
    #[inline(always)]
    fn positions(&self, arena: &Arena, out: &mut [u32]) {
        let start = arena.layout().arrays(self.page.tier).positions + 2 * self.tokens.start;
        let (offsets, _) = self.bytes[start..].as_chunks::<2>();
        for (out, offset) in out.iter_mut().zip(offsets) {
            *out = self.page.base.wrapping_add_signed(i32::from(i16::from_le_bytes(*offset)));
        }
    }
}

/// What the pieces of a group ask for from memory, bit by bit all through the work on the group: memory
/// idles while it is asked for nothing, and all at once would hold up the loads that are needed now.
pub struct Ahead<'a> {
    pieces: std::slice::Iter<'a, Piece<'a>>,
    /// The first line of those that the last piece has left.
    next: *const u8,
    lines: usize,
    /// Lines of a share: a quarter of a token's, at least one.
    share: usize,
}

impl<'a> Ahead<'a> {
    #[inline(always)]
    pub fn new(pieces: &'a [Piece<'a>]) -> Self {
        let lines: usize = pieces.iter().map(|piece| piece.ahead.len() / LINE).sum();
        let share = lines.checked_div(4 * num_tokens(pieces)).unwrap_or(0).max(1);
        Self { pieces: pieces.iter(), next: std::ptr::null(), lines: 0, share }
    }

    /// Asks for so many shares more.
    #[inline(always)]
    pub fn ask<S: Simd>(&mut self, simd: S, shares: usize) {
        for _ in 0..shares * self.share {
            let Some(line) = self.take() else { return };
            simd.prefetch_at(line);
        }
    }

    /// Asks for what is left.
    #[inline(always)]
    pub fn ask_rest<S: Simd>(&mut self, simd: S) {
        self.ask(simd, usize::MAX / self.share);
    }

    /// The next line; `None` when all are taken.
    #[inline(always)]
    fn take(&mut self) -> Option<*const u8> {
        while self.lines == 0 {
            let ahead = self.pieces.next()?.ahead;
            (self.next, self.lines) = (ahead.as_ptr(), ahead.len().div_ceil(LINE));
        }
        let line = self.next;
        self.next = line.wrapping_add(LINE);
        self.lines -= 1;
        Some(line)
    }
}

/// Calls `visit` with all tokens of the pages to visit, [`TOKENS`] at a time.
#[inline(always)]
pub fn each_group<S: Simd>(simd: S, arena: &Arena, pages: Pages, mut visit: impl FnMut(&[Piece])) {
    let Some(first) = pages.visited().first() else { return };
    let num_ahead = (TOKENS_AHEAD / arena.layout().capacity(first.tier)).max(PAGES_AHEAD);
    for page in pages.all.iter().take(num_ahead) {
        simd.prefetch(arena.page(page.page));
    }
    let mut pieces = SmallVec::<[Piece; PIECES]>::new();
    let mut len = 0;
    for (index, page) in pages.visited().iter().enumerate() {
        let ahead =
            pages.all.get(index + num_ahead).map_or(&[][..], |ahead| arena.page(ahead.page));
        let bytes = arena.page(page.page);
        let mut next = 0;
        while next < usize::from(page.len) {
            let taken = (usize::from(page.len) - next).min(TOKENS - len);
            let part = if taken == usize::from(page.len) {
                ahead
            } else {
                let of_ahead = |token: usize| ahead.len() * token / usize::from(page.len);
                &ahead[of_ahead(next)..of_ahead(next + taken)]
            };
            pieces.push(Piece { page, bytes, tokens: next..next + taken, ahead: part });
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

#[inline(always)]
pub fn num_tokens(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.tokens.len()).sum()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::PageId;

    #[test]
    fn a_group_asks_for_each_line_of_later_pages_once_and_for_nothing_else() {
        let bytes = vec![0u8; 2 * 2112];
        let page = PageRef { page: PageId(0), tier: Tier::F16, len: 8, base: 0 };
        let aheads = [&bytes[..2112], &[], &bytes[2112..3168], &bytes[3168..3200]];
        let pieces = aheads.map(|ahead| Piece { page: &page, bytes: &[], tokens: 0..8, ahead });
        let mut ahead = Ahead::new(&pieces);
        let asked: Vec<_> = std::iter::from_fn(|| ahead.take()).collect();
        let wanted = aheads.iter().flat_map(|ahead| ahead.chunks(LINE));
        assert_eq!(asked, wanted.map(<[u8]>::as_ptr).collect::<Vec<_>>());
    }
}
