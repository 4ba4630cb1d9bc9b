//! One pass through the model for all entries of a step.

use candle_core::Tensor;
use keepwell_kernels::give_back;
use keepwell_models::Batch;

use super::Engine;
use crate::{
    engine::gather::gather,
    metrics::engine::Stage,
    sched::{Entry, Step},
};

impl Engine {
    fn num_rows(&self, entry: &Entry) -> usize {
        self.streams.get(&entry.id).map_or(0, |stream| stream.num_rows(entry))
    }

    /// For each wanted row whether it is one of a prompt's vector.
    fn pooled_rows(&self, step: &Step) -> Vec<bool> {
        let rows = |entry: &Entry| {
            let is_pooled = self.streams.get(&entry.id).is_some_and(|s| s.pooler.is_some());
            std::iter::repeat_n(is_pooled, self.num_rows(entry))
        };
        step.entries.iter().flat_map(rows).collect()
    }

    /// Of the wanted rows, in the order of the entries: logits (vocab), or states (hidden) where a
    /// vector is made of them.
    pub(super) fn forward(&mut self, step: &Step) -> anyhow::Result<Vec<Vec<f32>>> {
        self.copy(&step.copies)?;
        let sequence = |entry: &Entry| self.scheduler.running(entry.id);
        let parts: Vec<_> =
            step.entries.iter().filter_map(|entry| Some((entry, sequence(entry)?))).collect();
        let mut gathered = gather(&parts, self.model.config(), |entry| self.num_rows(entry));
        gathered.plan.basis = self.calibration.basis.clone();
        self.metrics.lap(Stage::Gather);
        let batch = Batch {
            tokens: &gathered.tokens,
            logit_rows: &gathered.logit_rows,
            plan: &gathered.plan,
            probe: None,
            resumed: None,
        };
        let pooled = self.pooled_rows(step);
        if !pooled.contains(&true) {
            let logits = self.model.forward(&mut self.arena, &batch)?;
            let rows = logits.to_vec2::<f32>()?;
            give_back(logits);
            self.metrics.lap(Stage::Forward);
            return Ok(rows);
        }
        let states = self.model.hidden(&mut self.arena, &batch)?;
        let mut logits = self.logits_of(&states, &pooled)?.into_iter();
        let states = states.to_vec2::<f32>()?.into_iter().zip(pooled);
        let row = |(state, is_pooled)| if is_pooled { Some(state) } else { logits.next() };
        self.metrics.lap(Stage::Forward);
        Ok(states.filter_map(row).collect())
    }

    /// states (rows, hidden), returns those of the rows that are not pooled.
    fn logits_of(&self, states: &Tensor, pooled: &[bool]) -> anyhow::Result<Vec<Vec<f32>>> {
        let rows: Vec<u32> = (0..).zip(pooled).filter(|(_, p)| !**p).map(|(row, _)| row).collect();
        if rows.is_empty() {
            return Ok(vec![]);
        }
        let len = rows.len();
        let rows = Tensor::from_vec(rows, len, states.device())?;
        Ok(self.model.logits(&states.index_select(&rows, 0)?)?.to_vec2::<f32>()?)
    }
}
