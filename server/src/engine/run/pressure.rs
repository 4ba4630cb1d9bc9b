//! Memory pressure before a step.

use super::Engine;
use crate::{
    engine::{event::Memory, squeeze::squeeze},
    metrics::engine::Stage,
    sched::Pressure,
};

impl Engine {
    /// Lets in who may, and makes the cache denser where the next step would lack pages; once enough
    /// is free again, new tokens are kept as was asked.
    ///
    /// # Errors
    /// What those begin with who were let in cannot be copied.
    pub(super) fn meet_pressure(&mut self) -> anyhow::Result<()> {
        self.scheduler.admit(&mut self.ledger);
        let copies = self.scheduler.take_copies();
        self.copy(&copies)?;
        match self.scheduler.pressure(&self.ledger) {
            Pressure::High(num_pages) => self.squeeze(num_pages),
            Pressure::Steady => {}
            Pressure::Low => {
                self.scheduler.all_running_mut().for_each(|seq| seq.grant(seq.asked_budget));
                self.metrics.relieved();
            }
        }
        Ok(())
    }

    fn squeeze(&mut self, num_pages: usize) {
        self.metrics.lap(Stage::Schedule);
        let memory = Memory { arena: &mut self.arena, ledger: &mut self.ledger };
        let prices = &self.calibration.prices;
        match squeeze(num_pages, &*self.backend, memory, &mut self.scheduler, prices) {
            Ok(None) => {}
            Ok(Some(squeeze)) => self.metrics.squeezed(&squeeze),
            // What was not squeezed waits, or gives way.
            Err(error) => tracing::error!("memory pressure could not be met: {error:#}"),
        }
        self.metrics.lap(Stage::Compress);
    }
}
