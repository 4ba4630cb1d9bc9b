//! Which pages a sequence holds, per (layer, KV head).

use keepwell_kernels::{PageId, PageLayout, PageRef, Slot, Tier, Write};

use super::{Holdings, Ledger, prefix::NodeId};

/// Pages to be copied: from, to.
pub type PageCopies = Vec<(PageId, PageId)>;

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

    /// How many of the positions from `position` on the open page takes.
    fn room(&self, position: u32, layout: &PageLayout) -> usize {
        let Some(open) = self.pages.iter().rfind(|p| p.tier == Tier::F16) else { return 0 };
        let free = layout.capacity(Tier::F16) - usize::from(open.len);
        (position..).take(free).take_while(|p| open.reaches(*p)).count()
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
/// Not `Clone`: a page belongs to one table, or to a node of the prefix index that the table holds,
/// and [`PageTable::release`] gives it back once.
#[derive(Debug)]
pub struct PageTable {
    pub(super) heads: Vec<HeadPages>,
    pub(super) len: usize,
    /// The first so many pages of each head are these nodes', in this order; nobody writes to them.
    pub(super) shared: Vec<NodeId>,
    peak_pages: usize,
}

impl PageTable {
    /// `num_heads`: layers times KV heads, in this order.
    pub fn new(num_heads: usize) -> Self {
        Self {
            heads: vec![HeadPages::default(); num_heads],
            len: 0,
            shared: Vec::new(),
            peak_pages: 0,
        }
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
        assert!(self.shared.is_empty(), "shared pages stay as they are");
        self.heads[head] = pages;
    }

    /// The nodes whose pages the table shares.
    pub fn shared(&self) -> &[NodeId] {
        &self.shared
    }

    /// Pages that are this table's alone.
    pub fn private_pages(&self) -> impl Iterator<Item = &PageRef> {
        self.heads.iter().flat_map(|head| &head.pages[self.shared.len()..])
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
        let pages = |head: &HeadPages| {
            num_tokens.saturating_sub(head.room(self.len as u32, layout)).div_ceil(capacity)
        };
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
        self.note_peak();
        writes
    }

    pub(super) fn note_peak(&mut self) {
        self.peak_pages = self.peak_pages.max(self.num_pages());
    }

    /// The same pages anew in another ledger; returns the new table and, page by page, which copies
    /// which. `None` when pages do not suffice there.
    pub fn copy_to(&self, ledger: &mut Ledger) -> Option<(Self, PageCopies)> {
        let (heads, copies) = self.copy_heads(ledger)?;
        let (len, peak_pages) = (self.len, self.peak_pages);
        Some((Self { heads, len, shared: Vec::new(), peak_pages }, copies))
    }

    pub(super) fn copy_heads(&self, ledger: &mut Ledger) -> Option<(Vec<HeadPages>, PageCopies)> {
        if self.num_pages() > ledger.num_free() {
            return None;
        }
        let mut copies = Vec::with_capacity(self.num_pages());
        let mut copy = |from: &PageRef| {
            let page = ledger.allocate(from.tier).expect("counted above");
            copies.push((from.page, page));
            PageRef { page, ..*from }
        };
        let copied =
            |head: &HeadPages| HeadPages { pages: head.pages.iter().map(&mut copy).collect() };
        let heads = self.heads.iter().map(copied).collect();
        Some((heads, copies))
    }

    /// Gives every page back and forgets all positions; the peak stays.
    pub fn release(&mut self, ledger: &mut Ledger) {
        for page in self.private_pages() {
            ledger.release(page.page, page.tier);
        }
        self.heads.iter_mut().for_each(|head| head.pages.clear());
        // What hangs below goes first when pages run out.
        self.shared.drain(..).rev().for_each(|id| ledger.let_go(id));
        self.len = 0;
    }

    pub fn holdings(&self) -> Holdings {
        let mut holdings = Holdings::default();
        for page in self.heads.iter().flat_map(|head| &head.pages) {
            holdings.pages[page.tier] += 1;
            holdings.tokens[page.tier] += usize::from(page.len);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_holds_pages_of_its_own_and_outlives_the_original() {
        let layout = PageLayout::new(64);
        let (mut ledger, mut other) = (Ledger::new(layout, 8), Ledger::new(layout, 4));
        let mut table = PageTable::new(2);
        table.append(10, &mut ledger);
        let (copy, copies) = table.copy_to(&mut other).unwrap();
        assert_eq!((copies.len(), copy.len()), (4, 10));
        assert!(table.copy_to(&mut other).is_none(), "all pages there are taken");
        table.release(&mut ledger);
        copy.check(&layout);
        other.check([&copy]);
    }

    #[test]
    fn room_out_of_reach_of_the_open_page_is_not_counted() {
        let layout = PageLayout::new(64);
        let mut ledger = Ledger::new(layout, 1);
        let page = ledger.allocate(Tier::F16).unwrap();
        let mut table = PageTable::new(1);
        let open = PageRef { page, base: 0, len: 1, tier: Tier::F16 };
        table.replace_head(0, HeadPages { pages: vec![open] });
        table.len = 40_000;
        assert_eq!(table.pages_to_append(1, &layout), 1);
        table.len = 32_766;
        assert_eq!(table.pages_to_append(2, &layout), 0);
        assert_eq!(table.pages_to_append(3, &layout), 1);
    }
}
