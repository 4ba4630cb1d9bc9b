//! Which pages a sequence holds, per (layer, KV head).

use keepwell_kernels::{PageLayout, PageRef, Slot, Tier, Write};

use super::{Holdings, Ledger};

/// The pages of one (sequence, layer, KV head). New tokens go to the last F16 page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeadPages {
    pub pages: Vec<PageRef>,
}

impl HeadPages {
    pub fn num_tokens(&self) -> usize {
        self.pages.iter().map(|p| usize::from(p.len)).sum()
    }

    fn open_page(&mut self) -> Option<&mut PageRef> {
        self.pages.iter_mut().rfind(|p| p.tier == Tier::F16)
    }

    /// Free slots of the open page.
    fn room(&self, layout: &PageLayout) -> usize {
        let open = self.pages.iter().rfind(|p| p.tier == Tier::F16);
        open.map_or(0, |p| layout.capacity(Tier::F16) - usize::from(p.len))
    }

    /// The place of a new token, or `None` when that takes a page and none is free.
    fn append(&mut self, position: u32, ledger: &mut Ledger) -> Option<Write> {
        let capacity = ledger.layout().capacity(Tier::F16);
        let fits = |p: &PageRef| usize::from(p.len) < capacity && p.reaches(position);
        if !self.open_page().is_some_and(|p| fits(p)) {
            let page = ledger.allocate(Tier::F16)?;
            self.pages.push(PageRef { page, base: position, len: 0, tier: Tier::F16 });
        }
        let open = self.open_page().expect("pushed above if there was none");
        let slot = Slot { page: open.page, index: open.len };
        let offset = open.offset(position);
        open.len += 1;
        Some(Write { slot, offset })
    }
}

/// All pages of one sequence. `len` counts logical positions; evicted tokens keep theirs.
///
/// Not `Clone`: a page belongs to one table, and [`PageTable::release`] gives it back once.
#[derive(Debug)]
pub struct PageTable {
    heads: Vec<HeadPages>,
    len: usize,
    peak_pages: usize,
}

impl PageTable {
    /// `num_heads`: layers times KV heads, in this order.
    pub fn new(num_heads: usize) -> Self {
        Self { heads: vec![HeadPages::default(); num_heads], len: 0, peak_pages: 0 }
    }

    /// Logical positions written so far.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn num_heads(&self) -> usize {
        self.heads.len()
    }

    pub fn head(&self, head: usize) -> &HeadPages {
        &self.heads[head]
    }

    pub(super) fn replace_head(&mut self, head: usize, pages: HeadPages) {
        self.heads[head] = pages;
    }

    pub fn num_pages(&self) -> usize {
        self.heads.iter().map(|head| head.pages.len()).sum()
    }

    /// The most pages held at once.
    pub fn peak_pages(&self) -> usize {
        self.peak_pages
    }

    /// Pages that `num_tokens` more tokens take.
    pub fn pages_to_append(&self, num_tokens: usize, layout: &PageLayout) -> usize {
        let capacity = layout.capacity(Tier::F16);
        let pages =
            |head: &HeadPages| num_tokens.saturating_sub(head.room(layout)).div_ceil(capacity);
        self.heads.iter().map(pages).sum()
    }

    /// Makes room for the next `num_tokens` positions in every head. Returns, per head, where each
    /// of them is written.
    ///
    /// # Panics
    /// When pages run out: check [`PageTable::pages_to_append`] first.
    pub fn append(&mut self, num_tokens: usize, ledger: &mut Ledger) -> Vec<Vec<Write>> {
        let positions = self.len as u32..(self.len + num_tokens) as u32;
        let place = |head: &mut HeadPages| {
            let place = |position| head.append(position, ledger).expect("the scheduler counted");
            positions.clone().map(place).collect()
        };
        let writes = self.heads.iter_mut().map(place).collect();
        self.len += num_tokens;
        self.peak_pages = self.peak_pages.max(self.num_pages());
        writes
    }

    /// Gives every page back and forgets all positions; the peak stays.
    pub fn release(&mut self, ledger: &mut Ledger) {
        for page in self.heads.iter_mut().flat_map(|head| head.pages.drain(..)) {
            ledger.release(page.page, page.tier);
        }
        self.len = 0;
    }

    pub fn holdings(&self) -> Holdings {
        let mut holdings = Holdings::default();
        for page in self.heads.iter().flat_map(|head| &head.pages) {
            holdings.pages[page.tier as usize] += 1;
            holdings.tokens[page.tier as usize] += usize::from(page.len);
        }
        holdings
    }

    /// (token, layer, KV head) entries that are no longer held.
    pub fn num_evicted(&self) -> usize {
        self.len * self.heads.len() - self.holdings().num_tokens()
    }

    /// No page is empty, over-full, or listed twice.
    pub fn check(&self, layout: &PageLayout) {
        let mut seen = std::collections::HashSet::new();
        for head in &self.heads {
            assert!(head.num_tokens() <= self.len);
            for page in &head.pages {
                assert!(page.len > 0, "{page:?} is empty");
                assert!(usize::from(page.len) <= layout.capacity(page.tier), "{page:?}");
                assert!(seen.insert(page.page), "{page:?} is listed twice");
            }
        }
    }
}
