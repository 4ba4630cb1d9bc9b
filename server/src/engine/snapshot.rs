//! What the engine holds at one moment, as plain data: metrics and the dashboard read it.

use keepwell_kernels::PerTier;

use crate::{
    cache::Ledger,
    sched::{Scheduler, SeqId, Sequence},
};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub pages: Pages,
    /// Running ones first, oldest first.
    pub sequences: Vec<SequenceState>,
    /// Since the engine started.
    pub num_preemptions: usize,
    /// Whose sequences these are.
    pub num_users: usize,
}

/// The ledger's account of the arena.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pages {
    pub page_bytes: usize,
    pub num_pages: usize,
    pub num_live: usize,
    /// Pages that take memory: on a device all, else those that were ever live.
    pub num_touched: usize,
    /// Live pages.
    pub tiers: PerTier<usize>,
    /// Pages that the prefix cache alone holds.
    pub num_cached: usize,
    pub cached_tiers: PerTier<usize>,
}

impl Pages {
    pub fn touched_bytes(&self) -> usize {
        self.num_touched * self.page_bytes
    }

    /// Share, from 0 to 1, of the arena that is live.
    pub fn usage(&self) -> f64 {
        self.num_live as f64 / self.num_pages.max(1) as f64
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct SequenceState {
    pub id: SeqId,
    pub stage: Stage,
    pub prompt_len: usize,
    /// Tokens whose K and V are in the cache.
    pub num_computed: usize,
    pub num_generated: usize,
    /// The most tokens it may generate.
    pub max_tokens: usize,
    pub budget: f32,
    /// The budget it asked for; under memory pressure less is in force.
    pub asked_budget: f32,
    pub kv_bytes: usize,
    pub f16_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Prefill,
    Decode,
    Waiting(Reason),
}

/// What a sequence waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A place among those that run.
    Sequences,
    Memory,
    /// The next step: this one has its tokens.
    Step,
    /// Memory, after it had to give its own back.
    Preempted,
}

impl Stage {
    /// One word: the label in metrics and the dashboard.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Waiting(reason) => reason.name(),
        }
    }
}

impl Reason {
    pub const ALL: [Self; 4] = [Self::Sequences, Self::Memory, Self::Step, Self::Preempted];

    pub fn name(self) -> &'static str {
        match self {
            Self::Sequences => "sequences",
            Self::Memory => "memory",
            Self::Step => "step",
            Self::Preempted => "preempted",
        }
    }
}

impl Snapshot {
    pub fn new(scheduler: &Scheduler, ledger: &Ledger) -> Self {
        let state = |(nth, seq): (usize, &Sequence)| SequenceState {
            id: seq.id,
            stage: match nth < scheduler.num_running() {
                true if seq.is_decoding() => Stage::Decode,
                true => Stage::Prefill,
                false => Stage::Waiting(reason(seq, scheduler, ledger)),
            },
            prompt_len: seq.prompt_len,
            num_computed: seq.table.len(),
            num_generated: seq.num_generated(),
            max_tokens: seq.max_len - seq.prompt_len,
            budget: seq.budget,
            asked_budget: seq.asked_budget,
            kv_bytes: seq.table.num_pages() * ledger.layout().page_bytes,
            f16_bytes: scheduler.demand().f16_bytes(seq.table.len()),
        };
        Self {
            pages: Pages {
                page_bytes: ledger.layout().page_bytes,
                num_pages: ledger.num_pages(),
                num_live: ledger.num_live(),
                num_touched: ledger.num_touched(),
                tiers: *ledger.pages(),
                num_cached: ledger.num_cached(),
                cached_tiers: *ledger.cached(),
            },
            sequences: scheduler.sequences().enumerate().map(state).collect(),
            num_preemptions: scheduler.num_preemptions(),
            num_users: scheduler.num_users(),
        }
    }

    pub fn num_waiting(&self, reason: Reason) -> usize {
        self.sequences.iter().filter(|seq| seq.stage == Stage::Waiting(reason)).count()
    }

    pub fn num_waiting_for_anything(&self) -> usize {
        self.sequences.len() - self.num_running()
    }

    pub fn num_running(&self) -> usize {
        let is_running = |seq: &&SequenceState| !matches!(seq.stage, Stage::Waiting(_));
        self.sequences.iter().filter(is_running).count()
    }

    pub fn num_below_budget(&self) -> usize {
        self.sequences.iter().filter(|seq| seq.budget < seq.asked_budget).count()
    }
}

fn reason(seq: &Sequence, scheduler: &Scheduler, ledger: &Ledger) -> Reason {
    if seq.num_preemptions > 0 {
        Reason::Preempted
    } else if !scheduler.has_place() {
        Reason::Sequences
    } else if !scheduler.has_memory(seq, ledger) {
        Reason::Memory
    } else {
        Reason::Step
    }
}
