//! A model that notes when it was called and for which rows: rates of a part of a request, without
//! the engine knowing that it is measured.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::Result;
use candle_core::Tensor;
use keepwell_kernels::{Arena, PageLayout};
use keepwell_models::{Batch, Model, ModelConfig};

use crate::report::Sample;

/// Shared by the engines of all rows.
#[derive(Clone)]
pub struct Watched {
    model: Arc<Mutex<Box<dyn Model>>>,
    config: ModelConfig,
    bytes: usize,
    steps: Arc<Mutex<Vec<Step>>>,
}

/// One call.
struct Step {
    start: Instant,
    /// Position of each row.
    positions: Vec<u32>,
    /// Bytes of the pages of all sequences of the step.
    kv_bytes: usize,
}

impl Watched {
    pub fn new(model: Box<dyn Model>) -> Self {
        Self {
            config: model.config().clone(),
            bytes: model.bytes(),
            model: Arc::new(Mutex::new(model)),
            steps: Arc::default(),
        }
    }

    /// Forgets what was noted.
    pub fn restart(&self) {
        lock(&self.steps).clear();
    }

    /// The rows at `positions`. A step that also computed others counts by the share of its rows.
    pub fn prefill(&self, positions: Range<usize>, end: Instant) -> Sample {
        self.sample(end, |step| {
            step.positions.iter().filter(|p| positions.contains(&(**p as usize))).count()
        })
    }

    /// The steps in which `batch` sequences, all behind their `prompt`, advance by a token.
    pub fn decode(&self, prompt: usize, batch: usize, end: Instant) -> Sample {
        self.sample(end, |step| {
            let decodes = step.positions.iter().all(|p| *p as usize >= prompt);
            if decodes && step.positions.len() == batch { batch } else { 0 }
        })
    }

    /// A step lasts until the next one begins, so what the engine does in between is part of it; the
    /// last one lasts until `end`.
    fn sample(&self, end: Instant, counted: impl Fn(&Step) -> usize) -> Sample {
        let steps = lock(&self.steps);
        let ends = steps.iter().skip(1).map(|step| step.start).chain([end]);
        let mut sample = Sample { tokens: 0.0, seconds: 0.0, bytes: 0.0 };
        for (step, end) in steps.iter().zip(ends) {
            let tokens = counted(step) as f64;
            let share = tokens / step.positions.len() as f64;
            sample.tokens += tokens;
            sample.seconds += share * (end - step.start).as_secs_f64();
            sample.bytes += share * (self.bytes + step.kv_bytes) as f64;
        }
        sample
    }
}

impl Model for Watched {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn hidden(&self, arena: &mut Arena, batch: &Batch) -> Result<Tensor> {
        lock(&self.model).hidden(arena, batch)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        lock(&self.model).logits(hidden)
    }

    fn forward(&self, arena: &mut Arena, batch: &Batch) -> Result<Tensor> {
        lock(&self.steps).push(Step {
            start: Instant::now(),
            positions: batch.plan.positions.clone(),
            kv_bytes: batch.plan.pages.len() * PageLayout::new(self.config.head_dim).page_bytes,
        });
        lock(&self.model).forward(arena, batch)
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A poisoned lock means a failed engine, of which its events tell.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
