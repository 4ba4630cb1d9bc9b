//! One sequence in F16 pages, in order: the least that a forward pass needs.
#![allow(dead_code)] // Each test file uses a part.

pub mod files;

use std::path::PathBuf;

use candle_core::Tensor;
use keepwell_kernels::{
    Arena, AttentionPlan, Backend, PageId, PageLayout, PageRef, Slot, Span, Tier, Write,
};
use keepwell_models::{Batch, Model, ModelConfig};

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub fn golden(name: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

pub fn ids(value: &serde_json::Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// One sequence and its memory.
pub struct Sequence {
    arena: Arena,
    layout: PageLayout,
    config: ModelConfig,
    pages_per_head: usize,
    len: usize,
}

impl Sequence {
    pub fn new(backend: &dyn Backend, config: &ModelConfig, max_len: usize) -> Self {
        let layout = PageLayout::new(config.head_dim);
        let pages_per_head = max_len.div_ceil(layout.capacity(Tier::F16));
        let num_pages = pages_per_head * config.num_layers * config.num_kv_heads;
        let arena = backend.arena(layout, num_pages).unwrap();
        Self { arena, layout, config: config.clone(), pages_per_head, len: 0 }
    }

    /// Log-probabilities (logit_rows.len(), vocab) after feeding `tokens`.
    pub fn feed(
        &mut self,
        model: &dyn Model,
        tokens: &[u32],
        logit_rows: &[usize],
    ) -> Vec<Vec<f32>> {
        let plan = self.plan(tokens.len());
        self.len += tokens.len();
        let logits = self.forward(model, &plan, tokens, logit_rows);
        assert_eq!(logits.dims(), [logit_rows.len(), self.config.vocab_size]);
        logits.to_vec2().unwrap().into_iter().map(log_softmax).collect()
    }

    /// Logits (logit_rows.len(), vocab); the length stays as it was.
    pub fn forward(
        &mut self,
        model: &dyn Model,
        plan: &AttentionPlan,
        tokens: &[u32],
        logit_rows: &[usize],
    ) -> Tensor {
        let batch = Batch { tokens, logit_rows, plan, probe: None, resumed: None };
        model.forward(&mut self.arena, &batch).unwrap()
    }

    /// Of a step of so many rows.
    pub fn plan(&self, num_rows: usize) -> AttentionPlan {
        let heads = self.config.num_layers * self.config.num_kv_heads;
        let capacity = self.layout.capacity(Tier::F16);
        let end = self.len + num_rows;
        let mut plan = AttentionPlan {
            num_kv_heads: self.config.num_kv_heads,
            positions: (self.len..end).map(|p| p as u32).collect(),
            spans: vec![Span { rows: 0..num_rows, scoring: None }],
            page_starts: vec![0],
            window: self.config.sliding_window,
            ..Default::default()
        };
        for head in 0..heads {
            let first = head * self.pages_per_head;
            let page = |index: usize| PageId((first + index) as u32);
            for index in 0..end.div_ceil(capacity) {
                let base = index * capacity;
                let len = (end - base).min(capacity) as u16;
                plan.pages.push(PageRef {
                    page: page(index),
                    base: base as u32,
                    len,
                    tier: Tier::F16,
                });
            }
            plan.page_starts.push(plan.pages.len() as u32);
            let write = |p: usize| Write {
                slot: Slot { page: page(p / capacity), index: (p % capacity) as u16 },
                offset: (p % capacity) as i16,
            };
            plan.writes.extend((self.len..end).map(write));
        }
        plan
    }
}

pub fn log_softmax(logits: Vec<f32>) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f32 = logits.iter().map(|l| (l - max).exp()).sum();
    logits.iter().map(|l| l - max - sum.ln()).collect()
}

pub fn argmax(values: &[f32]) -> u32 {
    let best = values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.unwrap().0 as u32
}

/// What a golden case says, and how far from it we are.
pub struct Comparison {
    /// Largest difference of the top-10 log-probabilities.
    pub top10: f32,
    /// Difference of the prompt's mean negative log-likelihood.
    pub nll: f32,
    /// How far the reference's greedy tokens fall short of our best ones, in log-probability: 0
    /// when all agree, little where two are nearly tied.
    pub greedy_gap: f32,
}

/// Runs one golden case: the prompt in chunks of `chunk_len`, then greedy decoding.
pub fn compare(
    model: &dyn Model,
    backend: &dyn Backend,
    case: &serde_json::Value,
    chunk_len: usize,
) -> Comparison {
    let prompt = ids(&case["input_ids"]);
    let greedy = ids(&case["greedy_ids"]);
    let mut sequence = Sequence::new(backend, model.config(), prompt.len() + greedy.len());
    let mut logprobs = vec![];
    for chunk in prompt.chunks(chunk_len) {
        let rows: Vec<usize> = (0..chunk.len()).collect();
        logprobs.extend(sequence.feed(model, chunk, &rows));
    }
    let last = logprobs.last().unwrap();
    let expected: Vec<f32> = serde_json::from_value(case["last_top10_logprobs"].clone()).unwrap();
    let top10 = ids(&case["last_top10_ids"]);
    let top10 = top10.iter().zip(expected).map(|(&id, e)| (last[id as usize] - e).abs());
    let surprise = prompt[1..].iter().zip(&logprobs).map(|(&id, row)| -row[id as usize]);
    let nll = case["mean_nll"].as_f64().map_or(0.0, |expected| {
        (surprise.sum::<f32>() / (prompt.len() - 1) as f32 - expected as f32).abs()
    });
    assert!(last.iter().all(|l| l.is_finite()), "the logits are not finite");
    let mut greedy_gap = 0f32;
    let mut row = last.clone();
    for token in greedy {
        greedy_gap = greedy_gap.max(row[argmax(&row) as usize] - row[token as usize]);
        row = sequence.feed(model, &[token], &[0]).remove(0);
    }
    Comparison { top10: top10.fold(0.0, f32::max), nll, greedy_gap }
}
