//! One sequence: its tokens and the pages that hold what was computed of them.

use keepwell_kernels::Scoring;

use super::{
    Chunks, Demand, UserId,
    sharing::{Purity, Sharing},
};
use crate::{
    cache::{Ledger, PageTable},
    compress::{Evicted, PolicyId, Spans},
};

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
    /// `max_len` is a wish: memory for less than that is reserved.
    pub may_shorten: bool,
    /// Share of the F16 bytes it may hold after an event, from `min_budget` to `asked_budget`; 1 is
    /// no compression.
    pub budget: f32,
    /// What `budget` is while memory suffices.
    pub asked_budget: f32,
    /// What memory pressure may lower `budget` to.
    pub min_budget: f32,
    /// The least that `budget` has been.
    pub lowest_budget: f32,
    pub policy: PolicyId,
    /// Of the prompt: never evicted. They fit its floor ([`super::Demand::most_marked`]).
    pub marked: Spans,
    /// Lower ones leave the queue first.
    pub priority: i32,
    pub user: UserId,
    pub table: PageTable,
    /// Tokens computed since the last compress event.
    pub since_event: usize,
    /// Tokens computed since its prefill ended.
    pub num_decoded: usize,
    pub num_preemptions: usize,
    /// What was set aside for it when it was admitted.
    pub reserve: Reserve,
    /// Tokens between two compress events of a prefill at most: see [`Chunks`].
    pub chunk_len: usize,
    pub sharing: Sharing,
    /// Noted only where somebody will look at it.
    pub evicted: Option<Evicted>,
}

/// Memory that a running sequence can count on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserve {
    /// Tokens up to which it runs whatever the others do.
    pub len: usize,
    /// Pages that it takes at its floor on the way there.
    pub num_pages: usize,
}

impl Sequence {
    /// One that holds nothing yet, in caches of `num_heads` (layers times KV heads); `budgets` are
    /// the one asked for and the floor.
    pub fn new(id: SeqId, tokens: Vec<u32>, budgets: [f32; 2], num_heads: usize) -> Self {
        let [budget, min_budget] = budgets;
        Self {
            id,
            prompt_len: tokens.len(),
            tokens,
            max_len: usize::MAX,
            may_shorten: false,
            budget,
            asked_budget: budget,
            min_budget: min_budget.min(budget),
            lowest_budget: budget,
            policy: PolicyId::default(),
            marked: Spans::default(),
            priority: 0,
            user: UserId::ANONYMOUS,
            table: PageTable::new(num_heads),
            since_event: 0,
            num_decoded: 0,
            num_preemptions: 0,
            reserve: Reserve::default(),
            chunk_len: usize::MAX,
            sharing: Sharing::default(),
            evicted: None,
        }
    }

    /// Tokens whose K and V are not in the cache yet. The last of them gives the next token.
    pub fn num_pending(&self) -> usize {
        self.tokens.len() - self.table.len()
    }

    /// Tokens whose F16 bytes the budget is a share of. A prompt still coming in may use what the
    /// whole of it is allowed: nothing is evicted before the question at its end has been seen,
    /// unless it has to be.
    pub fn budgeted_len(&self) -> usize {
        if self.num_pending() > 1 { self.prefilled_len() } else { self.table.len() }
    }

    /// Pages that a compress event leaves it at most.
    pub fn limit(&self, demand: &Demand) -> usize {
        match self.num_pending() > 1 {
            true => demand.prefill_limit(self.budget, self.prefilled_len()),
            false => demand.limit(self.budget, self.table.len()),
        }
    }

    /// What counts as the length of a prompt still coming in: a sixteenth less at most. Prompts that
    /// begin alike and are about as long then come to the same, and share what events leave.
    pub fn prefilled_len(&self) -> usize {
        let len = self.tokens.len();
        let step = 1 << len.checked_ilog2().unwrap_or(0).saturating_sub(4);
        len / step * step
    }

    pub fn is_decoding(&self) -> bool {
        self.num_pending() == 1 && !self.table.is_empty()
    }

    /// Whether events evict only where demoting makes no room: what is computed later may come back to
    /// any token, and demoted ones can tell it, evicted ones cannot. Only the event at the end of the
    /// prompt is free to choose. It has seen the question; most of what the prompt is ever asked.
    pub fn demotes_first(&self) -> bool {
        self.num_pending() > 1 || self.num_decoded > 0
    }

    pub fn num_generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    pub fn is_compressed(&self) -> bool {
        self.budget < 1.0
    }

    /// Whether anything may ever be demoted: then its tokens are scored from the first on, or nobody
    /// would know the cheapest when memory runs short.
    pub fn is_scored(&self) -> bool {
        self.min_budget < 1.0
    }

    /// Only one that named no limit can be.
    pub fn is_beyond_reserve(&self) -> bool {
        self.tokens.len() > self.reserve.len
    }

    /// Sets the budget in force.
    pub fn grant(&mut self, budget: f32) {
        self.budget = budget.clamp(self.min_budget, self.asked_budget);
        self.lowest_budget = self.lowest_budget.min(self.budget);
    }

    /// Gives all pages back.
    pub fn release(&mut self, ledger: &mut Ledger) {
        self.table.release(ledger);
        self.evicted.as_mut().into_iter().for_each(Evicted::clear);
        self.since_event = 0;
        self.sharing.start_anew();
    }

    /// Where the compress events of its prefill come.
    pub fn chunks(&self) -> Chunks {
        Chunks { chunk_len: self.chunk_len, total: self.tokens.len() }
    }

    /// Where the next of them comes.
    fn chunk_end(&self) -> usize {
        self.chunks().end(self.table.len())
    }

    /// The last tokens of the present chunk that are computed in one step.
    fn num_last(&self) -> usize {
        self.tokens_together().min(self.chunk_end() - self.chunks().start(self.table.len()))
    }

    /// Tokens that a chunk ends with in one step: the queries that are scored, and two at least, for
    /// with one token to come it would be a decoding sequence, whose events come elsewhere.
    pub(super) fn tokens_together(&self) -> usize {
        let policy = self.policy.policy();
        policy.signal().map_or(0, |_| policy.queries().prefill).max(2)
    }

    /// Pending tokens that go into a step with room for so many. The queries that are scored go
    /// into one step, or what they tell would depend on what the others leave room for.
    pub fn part(&self, room: usize) -> usize {
        if !self.is_scored() {
            return self.num_pending().min(room);
        }
        let left = self.chunk_end() - self.table.len();
        match left <= room {
            true => left,
            false => left.saturating_sub(self.num_last()).min(room),
        }
    }

    /// Whether a step that computes `num_tokens` ends with a compress event; it does nothing where
    /// the budget in force is 1.
    pub fn has_event(&self, num_tokens: usize) -> bool {
        let is_due = match self.is_decoding() {
            true => self.since_event + num_tokens >= EVENT_INTERVAL,
            false => self.table.len() + num_tokens >= self.chunk_end(),
        };
        self.is_scored() && is_due
    }

    /// Whether the present chunk of its prefill is computed in part: it holds that part in full.
    pub fn is_within_chunk(&self) -> bool {
        self.is_scored() && !self.is_decoding() && self.since_event > 0
    }

    /// Takes note of a step that computes `num_tokens`.
    pub(super) fn advance(&mut self, num_tokens: usize) {
        let has_event = self.has_event(num_tokens);
        self.num_decoded = if self.is_decoding() { self.num_decoded + num_tokens } else { 0 };
        if has_event && !self.is_decoding() && num_tokens < self.num_last() {
            self.sharing.is_at_best(Purity::Private);
        }
        self.since_event = if has_event { 0 } else { self.since_event + num_tokens };
    }

    /// How a step that computes `num_tokens` updates the attributions.
    pub fn scoring(&self, num_tokens: usize) -> Option<Scoring> {
        let policy = self.policy.policy();
        let signal = policy.signal().filter(|_| self.is_scored())?;
        let queries = policy.queries();
        let rows = if !self.is_decoding() {
            self.has_event(num_tokens).then(|| queries.prefill.min(num_tokens))?
        } else if self.since_event >= EVENT_INTERVAL.saturating_sub(queries.decode) {
            num_tokens
        } else {
            return None;
        };
        Some(Scoring { rows, signal, decay: queries.decay(rows) })
    }
}
