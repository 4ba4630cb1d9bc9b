//! One sequence: its tokens and the pages that hold what was computed of them.

use keepwell_kernels::Scoring;

use crate::{cache::PageTable, compress::PolicyId};

/// Decoded tokens between two compress events of a sequence.
pub const EVENT_INTERVAL: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

#[derive(Debug)]
pub struct Sequence {
    pub id: SeqId,
    /// The prompt, then what was generated.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    /// `tokens` never grows beyond this.
    pub max_len: usize,
    /// Share of the F16 bytes it may hold after an event; 1 is no compression.
    pub budget: f32,
    pub policy: PolicyId,
    /// Lower ones leave the queue first.
    pub priority: i32,
    pub table: PageTable,
    /// Tokens computed since the last compress event.
    pub since_event: usize,
    pub num_preemptions: usize,
}

impl Sequence {
    /// Tokens whose K and V are not in the cache yet. The last of them gives the next token.
    pub fn num_pending(&self) -> usize {
        self.tokens.len() - self.table.len()
    }

    /// Tokens whose F16 bytes the budget is a share of. A prompt still coming in may use what the
    /// whole of it is allowed: nothing is evicted before the question at its end has been seen,
    /// unless it has to be.
    pub fn budgeted_len(&self) -> usize {
        if self.num_pending() > 1 { self.tokens.len() } else { self.table.len() }
    }

    pub fn is_decoding(&self) -> bool {
        self.num_pending() == 1 && !self.table.is_empty()
    }

    pub fn num_generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    pub fn is_compressed(&self) -> bool {
        self.budget < 1.0
    }

    /// Whether a step that computes `num_tokens` ends with a compress event.
    pub fn has_event(&self, num_tokens: usize) -> bool {
        let is_due = !self.is_decoding() || self.since_event + num_tokens >= EVENT_INTERVAL;
        self.is_compressed() && is_due
    }

    /// How a step that computes `num_tokens` updates the attributions.
    pub fn scoring(&self, num_tokens: usize) -> Option<Scoring> {
        let policy = self.policy.policy();
        let signal = policy.signal().filter(|_| self.is_compressed())?;
        let queries = policy.queries();
        let rows = if !self.is_decoding() {
            queries.prefill.min(num_tokens)
        } else if self.since_event >= EVENT_INTERVAL.saturating_sub(queries.decode) {
            num_tokens
        } else {
            return None;
        };
        Some(Scoring { rows, signal, decay: queries.decay(rows) })
    }
}
