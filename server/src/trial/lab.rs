use anyhow::Result;
use keepwell_kernels::{Backend, PageLayout, Tier};
use keepwell_models::{Model, ModelConfig};

use super::{EventTime, Trial};
use crate::{
    cache::Ledger,
    calibrate::Calibration,
    compress::{PolicyId, Protection},
    sched::{Demand, MAX_TIERS_HELD, SeqId, Sequence},
};

/// What all trials share: a model, its kernels, and the page arithmetic of a server.
#[derive(Clone, Copy)]
pub struct Lab<'a> {
    pub(super) model: &'a dyn Model,
    pub(super) backend: &'a dyn Backend,
    pub(super) calibration: Option<&'a Calibration>,
    pub(super) demand: Demand,
}

/// How a trial's cache is compressed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// Share of the F16 bytes held after a compress event; 1 is no compression.
    pub budget: f32,
    pub policy: PolicyId,
}

impl Recipe {
    /// Everything stays in F16; nothing is scored.
    pub fn exact() -> Self {
        Self { budget: 1.0, policy: PolicyId::default() }
    }
}

impl<'a> Lab<'a> {
    /// `max_chunk`: tokens of the largest prefill chunk, as the scheduler's `max_step_tokens`.
    pub fn new(
        model: &'a dyn Model,
        backend: &'a dyn Backend,
        max_chunk: usize,
        protection: Protection,
    ) -> Self {
        let config = model.config();
        let layout = PageLayout::new(config.head_dim);
        let num_heads = config.num_layers * config.num_kv_heads;
        let demand = Demand { layout, num_heads, max_chunk, protection };
        Self { model, backend, calibration: None, demand }
    }

    /// The same, in the calibration's basis and at its prices.
    pub fn calibrated(self, calibration: &'a Calibration) -> Self {
        Self { calibration: Some(calibration), ..self }
    }

    pub fn config(&self) -> &'a ModelConfig {
        self.model.config()
    }

    /// How many trials are worth running at once: on a host, what one does on a single core leaves
    /// the others idle.
    pub fn runs_side_by_side(&self) -> usize {
        if self.backend.device().is_cpu() { 2 } else { 1 }
    }

    pub fn demand(&self) -> &Demand {
        &self.demand
    }

    /// An empty context with room for `capacity` tokens.
    ///
    /// # Errors
    /// The system does not have the memory.
    pub fn start(&self, recipe: Recipe, capacity: usize) -> Result<Trial<'a>> {
        let budgets = [recipe.budget; 2];
        let seq = Sequence {
            policy: recipe.policy,
            chunk_len: self.demand.max_chunk,
            ..Sequence::new(SeqId(0), vec![], budgets, self.demand.num_heads)
        };
        self.trial(seq, capacity)
    }

    fn trial(&self, seq: Sequence, capacity: usize) -> Result<Trial<'a>> {
        // A tier in use adds a page that is partly empty; pages that lie idle cost nothing.
        let pages = capacity.div_ceil(self.demand.layout.capacity(Tier::F16)) + MAX_TIERS_HELD + 1;
        let num_pages = self.demand.num_heads * pages;
        let arena = self.backend.arena(self.demand.layout, num_pages)?;
        let ledger = Ledger::new(self.demand.layout, num_pages);
        let event_time = EventTime::default();
        Ok(Trial { lab: *self, arena, ledger, seq, capacity, next: None, event_time })
    }
}
