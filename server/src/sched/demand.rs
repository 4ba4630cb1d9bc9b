//! How many pages a sequence may need: what admission and compression count with.

use keepwell_kernels::{PageLayout, Tier};

use super::sequence::EVENT_INTERVAL;
use crate::cache::REACH;
use crate::compress::{COARSEST_PROTECTED, MAX_TIERS, Protection};

/// Those that are priced, that of protected tokens, and F16.
pub const MAX_TIERS_HELD: usize = MAX_TIERS + 2;

/// Page arithmetic for one model and server.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    pub layout: PageLayout,
    /// Layers times KV heads.
    pub num_heads: usize,
    /// Tokens of the largest prefill chunk.
    pub max_chunk: usize,
    pub protection: Protection,
}

impl Demand {
    /// Bytes of K and V of `len` tokens in plain F16.
    pub fn f16_bytes(&self, len: usize) -> usize {
        len * self.num_heads * self.layout.f16_token_bytes()
    }

    /// Pages a compressed sequence of `len` tokens may hold after an event: its share of the F16
    /// bytes, yet never less than one window takes in F16, nor than its protected tokens take in the
    /// coarsest tier. What is shorter than a window is left exact: there is little to win, and a
    /// short prompt all in 4 bits was seen to derail a small model.
    pub fn limit(&self, budget: f32, len: usize) -> usize {
        let bytes = f64::from(budget) * self.f16_bytes(len) as f64;
        let share = (bytes / self.layout.page_bytes as f64) as usize;
        let window = len.min(EVENT_INTERVAL).div_ceil(self.layout.capacity(Tier::F16));
        share.max(self.num_heads * window.max(self.protected_pages(len)))
    }

    /// Pages that an event within a prompt of `len` tokens leaves at most: what the whole of it may hold,
    /// and a chunk more. What is lost before the question at the end was seen cannot be had back, and
    /// the next chunk takes as much anyway. It is not set aside: where memory runs short, it is had back
    /// like all that is held above a floor.
    pub fn prefill_limit(&self, budget: f32, len: usize) -> usize {
        self.limit(budget, len) + self.chunk()
    }

    /// The share of `len` tokens' F16 bytes that so many pages are, metadata included.
    pub fn share(&self, num_pages: usize, len: usize) -> f32 {
        (num_pages * self.layout.page_bytes) as f32 / self.f16_bytes(len).max(1) as f32
    }

    /// Pages per head of the tokens that are never evicted, at the coarsest tier.
    fn protected_pages(&self, len: usize) -> usize {
        let Protection { sinks, recent, prompt_end } = self.protection;
        len.min(sinks + recent + prompt_end).div_ceil(self.layout.capacity(COARSEST_PROTECTED))
    }

    /// Tokens that may be marked at most, in a prompt of which at least `len` tokens count: with them,
    /// all that is never evicted fits the budget in the coarsest tier.
    pub fn most_marked(&self, budget: f32, len: usize) -> usize {
        // What is no longer than a window is never squeezed.
        let len = len.max(EVENT_INTERVAL);
        let pages = self.limit(budget, len) / self.num_heads;
        // They are kept finer where that takes no more than an eighth; sinks may have a page of their
        // own, and pages may end early.
        let others = self.protected_pages(len).max(pages / 8) + 1 + MAX_TIERS * (len / REACH);
        pages.saturating_sub(others) * self.layout.capacity(COARSEST_PROTECTED)
    }

    /// The most pages the sequence needs on its way to `len` tokens, were it alone: what it may keep
    /// plus what it writes in F16 until the next event.
    pub fn peak(&self, budget: f32, len: usize) -> usize {
        self.with_window(budget, len, self.max_chunk.max(EVENT_INTERVAL))
    }

    /// Pages to set aside for a sequence on its way to `len` tokens: as [`Demand::peak`], but for the
    /// prefill chunk, of which a step has one for all ([`Demand::chunk`]).
    pub fn reserve(&self, budget: f32, len: usize) -> usize {
        self.with_window(budget, len, EVENT_INTERVAL)
    }

    /// Pages of the tokens that one step writes at most.
    pub fn chunk(&self) -> usize {
        self.num_heads * self.max_chunk.div_ceil(self.layout.capacity(Tier::F16))
    }

    /// Pages of the tokens that a sequence decodes between two events.
    pub fn window(&self) -> usize {
        self.num_heads * EVENT_INTERVAL.div_ceil(self.layout.capacity(Tier::F16))
    }

    fn with_window(&self, budget: f32, len: usize, window: usize) -> usize {
        let f16_pages = |len: usize| len.div_ceil(self.layout.capacity(Tier::F16));
        if budget >= 1.0 {
            return self.num_heads * f16_pages(len);
        }
        // One page of slack: the open page need not start with the chunk.
        let written = f16_pages(len.min(window)) + 1;
        let compressed = self.limit(budget, len) + self.num_heads * written;
        // An event never takes more pages than it found; a tier in use adds one that is partly
        // empty.
        let exact = self.num_heads * (f16_pages(len) + MAX_TIERS_HELD);
        compressed.min(exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand() -> Demand {
        Demand {
            layout: PageLayout::new(64),
            num_heads: 90,
            max_chunk: 512,
            protection: Protection::default(),
        }
    }

    #[test]
    fn a_smaller_budget_never_asks_for_much_more_than_no_compression() {
        for len in [1, 40, 140, 700, 5000] {
            let exact = demand().peak(1.0, len);
            let slack = 90 * MAX_TIERS_HELD;
            for budget in [0.9, 0.28, 0.1] {
                assert!(demand().peak(budget, len) <= exact + slack, "{len} at {budget}");
            }
        }
        assert!(demand().peak(0.28, 5000) < demand().peak(1.0, 5000) / 2);
    }

    #[test]
    fn what_is_shorter_than_a_window_is_left_exact() {
        for len in [1, 37, 64] {
            assert!(demand().limit(0.1, len) >= demand().peak(1.0, len));
        }
    }

    #[test]
    fn a_larger_budget_has_room_for_more_marked_tokens() {
        let most = |budget| demand().most_marked(budget, 3000);
        assert!(most(0.06) < most(0.125) && most(0.125) < most(0.28));
        assert!(most(0.28) >= 1000 && most(1.0) >= 3000, "{} {}", most(0.28), most(1.0));
        let left = 8 - 4 - 1;
        let per_page = demand().layout.capacity(COARSEST_PROTECTED);
        assert_eq!(demand().most_marked(0.01, 300), left * per_page, "of a window's pages");
    }

    #[test]
    fn the_limit_is_the_share_of_plain_f16_bytes() {
        let bytes = demand().limit(0.25, 4000) * demand().layout.page_bytes;
        let share = 4000 * 90 * 256 / 4;
        assert!(bytes <= share && bytes + demand().layout.page_bytes > share);
    }
}
