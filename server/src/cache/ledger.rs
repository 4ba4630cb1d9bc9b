//! The byte-exact account of the arena.

use keepwell_kernels::{PageId, PageLayout, PerTier, Tier};

use super::PagePool;

/// Hands out pages and books each one under its tier.
#[derive(Debug)]
pub struct Ledger {
    layout: PageLayout,
    pool: PagePool,
    pages: PerTier<usize>,
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
        Self { layout, pool: PagePool::new(num_pages), pages: PerTier::default() }
    }

    pub fn layout(&self) -> &PageLayout {
        &self.layout
    }

    pub fn num_pages(&self) -> usize {
        self.pool.num_pages()
    }

    pub fn num_free(&self) -> usize {
        self.pool.num_free()
    }

    pub fn num_live(&self) -> usize {
        self.pool.num_live()
    }

    /// Pages that were ever live.
    pub fn num_touched(&self) -> usize {
        self.pool.num_touched()
    }

    /// Live pages by the tier they are booked under.
    pub fn pages(&self) -> &PerTier<usize> {
        &self.pages
    }

    pub fn allocate(&mut self, tier: Tier) -> Option<PageId> {
        let page = self.pool.allocate()?;
        self.pages[tier] += 1;
        Some(page)
    }

    pub fn release(&mut self, page: PageId, tier: Tier) {
        self.pool.release(page);
        self.pages[tier] -= 1;
    }

    /// The tiers' pages add up to the live ones, and these are what the sequences hold.
    pub fn check<'a>(&self, sequences: impl Iterator<Item = &'a Holdings>) {
        self.pool.check();
        assert_eq!(self.pages.values().sum::<usize>(), self.num_live());
        let mut held = PerTier::<usize>::default();
        for holdings in sequences {
            for (total, pages) in held.values_mut().zip(holdings.pages.values()) {
                *total += pages;
            }
        }
        assert_eq!(held, self.pages, "pages held by sequences differ from pages booked");
    }
}
