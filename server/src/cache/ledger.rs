//! The byte-exact account of the arena.
//!
//! A page is free; or live, which is held by a running sequence or by several; or cached, which is
//! held by the prefix index alone and given up for whoever needs a page.

use std::collections::HashMap;

use keepwell_kernels::{PageId, PageLayout, PerTier, Tier};

use super::{
    PagePool, PageTable,
    prefix::{Contents, NodeId, Place, PrefixIndex, Salt},
};

/// Hands out pages and books each one under its tier.
#[derive(Debug)]
pub struct Ledger {
    layout: PageLayout,
    pool: PagePool,
    /// Live pages.
    pages: PerTier<usize>,
    cached: PerTier<usize>,
    pub(super) prefixes: PrefixIndex,
}

/// What one sequence holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Pages by tier.
    pub pages: PerTier<usize>,
    /// (token, layer, KV head) entries by tier.
    pub tokens: PerTier<usize>,
}

impl Holdings {
    pub fn num_pages(&self) -> usize {
        self.pages.values().sum()
    }

    pub fn num_tokens(&self) -> usize {
        self.tokens.values().sum()
    }
}

impl Ledger {
    pub fn new(layout: PageLayout, num_pages: usize) -> Self {
        Self {
            layout,
            pool: PagePool::new(num_pages),
            pages: PerTier::default(),
            cached: PerTier::default(),
            prefixes: PrefixIndex::default(),
        }
    }

    /// Of the same arena, nothing of which is held any more.
    pub fn emptied(&self) -> Self {
        Self { pool: self.pool.emptied(), ..Self::new(self.layout, 0) }
    }

    pub fn layout(&self) -> &PageLayout {
        &self.layout
    }

    pub fn num_pages(&self) -> usize {
        self.pool.num_pages()
    }

    /// Pages to be had: free ones, and cached ones that would be given up.
    pub fn num_free(&self) -> usize {
        self.pool.num_free() + self.num_cached()
    }

    pub fn num_live(&self) -> usize {
        self.pages.values().sum()
    }

    pub fn num_cached(&self) -> usize {
        self.cached.values().sum()
    }

    /// Pages that were ever live.
    pub fn num_touched(&self) -> usize {
        self.pool.num_touched()
    }

    /// Live pages by the tier they are booked under. One that several sequences share is one page.
    pub fn pages(&self) -> &PerTier<usize> {
        &self.pages
    }

    /// Pages that the index alone holds, by tier.
    pub fn cached(&self) -> &PerTier<usize> {
        &self.cached
    }

    pub fn prefixes(&self) -> &PrefixIndex {
        &self.prefixes
    }

    pub fn allocate(&mut self, tier: Tier) -> Option<PageId> {
        let page = self.take()?;
        self.pages[tier] += 1;
        Some(page)
    }

    pub fn release(&mut self, page: PageId, tier: Tier) {
        self.pool.release(page);
        self.pages[tier] -= 1;
    }

    fn take(&mut self) -> Option<PageId> {
        loop {
            if let Some(page) = self.pool.allocate() {
                return Some(page);
            }
            self.reclaim()?;
        }
    }

    /// Gives up what was not used for longest.
    fn reclaim(&mut self) -> Option<()> {
        let contents = self.prefixes.reclaim()?;
        for (page, tier) in contents.pages() {
            self.pool.release(page);
            self.cached[tier] -= 1;
        }
        Some(())
    }

    /// Gives up all that no running sequence holds.
    pub fn forget_cached(&mut self) {
        while self.reclaim().is_some() {}
    }

    /// One more table has the node's pages.
    pub(super) fn hold(&mut self, id: NodeId) {
        if self.prefixes.hold(id) {
            for (_, tier) in self.prefixes.contents(id).pages() {
                self.cached[tier] -= 1;
                self.pages[tier] += 1;
            }
        }
    }

    /// One table less.
    pub(super) fn let_go(&mut self, id: NodeId) {
        if self.prefixes.let_go(id) {
            for (_, tier) in self.prefixes.contents(id).pages() {
                self.pages[tier] -= 1;
                self.cached[tier] += 1;
            }
        }
    }

    /// Gives live pages of a table to the index; the table holds the node from now on.
    pub(super) fn give(&mut self, salt: Salt, place: Place, contents: Contents) -> NodeId {
        self.prefixes.insert(salt, place, contents, 1)
    }

    /// As [`Ledger::give`], but the table holds on to nothing: the pages are cached.
    pub(super) fn cache(&mut self, salt: Salt, place: Place, contents: Contents) -> NodeId {
        for (_, tier) in contents.pages() {
            self.pages[tier] -= 1;
            self.cached[tier] += 1;
        }
        self.prefixes.insert(salt, place, contents, 0)
    }

    /// Every page is free, live or cached, once; live ones are what these tables hold, all of them.
    pub fn check<'a>(&self, tables: impl IntoIterator<Item = &'a PageTable>) {
        self.pool.check();
        self.prefixes.check();
        let mut holders = HashMap::<NodeId, usize>::new();
        let (mut pages, mut cached) = (PerTier::<usize>::default(), PerTier::default());
        for table in tables {
            table.private_pages().for_each(|page| pages[page.tier] += 1);
            table.shared().iter().for_each(|id| *holders.entry(*id).or_default() += 1);
        }
        for (id, contents, num_holders) in self.prefixes.nodes() {
            assert_eq!(holders.get(&id).copied().unwrap_or(0), num_holders, "{id:?}");
            let account = if num_holders > 0 { &mut pages } else { &mut cached };
            contents.pages().for_each(|(_, tier)| account[tier] += 1);
        }
        assert_eq!(pages, self.pages, "pages held by sequences differ from pages booked");
        assert_eq!(cached, self.cached, "pages of the index differ from pages booked");
        assert_eq!(self.num_live() + self.num_cached(), self.pool.num_live());
    }
}
