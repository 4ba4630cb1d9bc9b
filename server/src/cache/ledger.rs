//! The byte-exact account of the arena.

use keepwell_kernels::{PageId, PageLayout, TIERS, Tier};

use super::PagePool;

const NUM_TIERS: usize = TIERS.len();

/// Hands out pages and books each one under its tier.
#[derive(Debug)]
pub struct Ledger {
    layout: PageLayout,
    pool: PagePool,
    pages: [usize; NUM_TIERS],
}

/// What one sequence holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Pages by tier.
    pub pages: [usize; NUM_TIERS],
    /// (token, layer, KV head) entries by tier.
    pub tokens: [usize; NUM_TIERS],
}

impl Holdings {
    pub fn num_pages(&self) -> usize {
        self.pages.iter().sum()
    }

    pub fn num_tokens(&self) -> usize {
        self.tokens.iter().sum()
    }
}

impl Ledger {
    pub fn new(layout: PageLayout, num_pages: usize) -> Self {
        Self { layout, pool: PagePool::new(num_pages), pages: [0; NUM_TIERS] }
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

    /// Bytes of the pages booked under a tier.
    pub fn tier_bytes(&self, tier: Tier) -> usize {
        self.pages[tier as usize] * self.layout.page_bytes
    }

    pub fn allocate(&mut self, tier: Tier) -> Option<PageId> {
        let page = self.pool.allocate()?;
        self.pages[tier as usize] += 1;
        Some(page)
    }

    pub fn release(&mut self, page: PageId, tier: Tier) {
        self.pool.release(page);
        self.pages[tier as usize] -= 1;
    }

    /// The tiers' pages add up to the live ones, and these are what the sequences hold.
    pub fn check<'a>(&self, sequences: impl Iterator<Item = &'a Holdings>) {
        self.pool.check();
        assert_eq!(self.pages.iter().sum::<usize>(), self.num_live());
        let mut held = [0; NUM_TIERS];
        for holdings in sequences {
            for (total, pages) in held.iter_mut().zip(holdings.pages) {
                *total += pages;
            }
        }
        assert_eq!(held, self.pages, "pages held by sequences differ from pages booked");
    }
}
