//! What the engine tells Prometheus. Names are vLLM's where vLLM has one.

use std::time::{Duration, Instant};

use keepwell_kernels::TIERS;
use metrics::{counter, gauge, histogram};

use super::FinishReason;
use crate::{
    cache::Ledger,
    sched::{Scheduler, Step},
};

/// Gauges are published this often while steps run.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);

pub struct EngineMetrics {
    published: Option<Instant>,
    num_preemptions: usize,
}

impl EngineMetrics {
    pub fn new() -> Self {
        Self { published: None, num_preemptions: 0 }
    }

    /// Gauges from the ledger. At idle always; else at intervals.
    pub fn publish(&mut self, scheduler: &Scheduler, ledger: &Ledger) {
        let is_recent = self.published.is_some_and(|at| at.elapsed() < PUBLISH_INTERVAL);
        if is_recent && !scheduler.is_idle() {
            return;
        }
        self.published = Some(Instant::now());
        gauge!("vllm:num_requests_running").set(scheduler.num_running() as f64);
        gauge!("vllm:num_requests_waiting").set(scheduler.num_waiting() as f64);
        let usage = ledger.num_live() as f64 / ledger.num_pages() as f64;
        gauge!("vllm:kv_cache_usage_perc").set(usage);
        gauge!("keepwell_kv_pages", "state" => "free").set(ledger.num_free() as f64);
        gauge!("keepwell_kv_pages", "state" => "live").set(ledger.num_live() as f64);
        for info in &TIERS {
            let bytes = ledger.tier_bytes(info.tier) as f64;
            gauge!("keepwell_kv_bytes", "tier" => info.name, "state" => "live").set(bytes);
        }
        let new = scheduler.num_preemptions() - self.num_preemptions;
        counter!("vllm:num_preemptions_total").increment(new as u64);
        self.num_preemptions = scheduler.num_preemptions();
    }

    pub fn step(&self, step: &Step) {
        let num_tokens: usize = step.entries.iter().map(|entry| entry.num_tokens).sum();
        let num_sampled = step.entries.iter().filter(|entry| entry.samples).count();
        // The token that ends a prefill is computed with it: count prompt tokens by what is not a
        // decode.
        let num_decoded = step.entries.iter().filter(|e| e.samples && e.num_tokens == 1).count();
        counter!("vllm:prompt_tokens_total").increment((num_tokens - num_decoded) as u64);
        counter!("vllm:generation_tokens_total").increment(num_sampled as u64);
        histogram!("vllm:iteration_tokens_total").record(num_tokens as f64);
    }

    pub fn compressed(&self, freed_pages: usize, took: Duration) {
        counter!("keepwell_kv_pages_reclaimed_total").increment(freed_pages as u64);
        histogram!("keepwell_compress_seconds").record(took.as_secs_f64());
    }

    pub fn finished(&self, reason: FinishReason) {
        let reason = match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Abort => "abort",
        };
        counter!("vllm:request_success_total", "finished_reason" => reason).increment(1);
    }
}
