//! What the engine tells of its steps, its memory and its sequences.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Histogram, Label};

use super::{
    rejections::{QUEUED_REQUESTS, QUEUED_TOKENS, turned_away},
    series,
    table::{
        BELOW_BUDGET, CACHE_CONFIG, COMPRESS_TIME, COMPRESSION_RATIO, CORRUPTED, GENERATION_TOKENS,
        ITERATION_TOKENS, KV_BYTES, KV_DEMOTED, KV_EVICTED, KV_PAGES, KV_RECLAIMED, KV_REJECTIONS,
        KV_USAGE, LORA, MEMORY, PREEMPTIONS, PREFIX_HITS, PREFIX_QUERIES, PRESSURE_PRICE, PRICE,
        PROMPT_TOKENS, PROMPT_TOKENS_BY_SOURCE, PROMPT_TOKENS_CACHED,
        PROMPT_TOKENS_CACHED_BY_SOURCE, QUEUE, REQUEST_KV_PEAK, RESTARTS, RETAINED_ATTRIBUTION,
        RUNNING, SLEEP_STATE, SQUEEZES, STEP_TIME, SUCCESS, USERS, WAITING, WAITING_BY_REASON,
        labels,
    },
};
use crate::engine::{
    EngineError, EngineInfo, FinishReason, KvUsage,
    event::Report,
    snapshot::{Pages, Reason, Snapshot},
    squeeze::Squeeze,
};

/// Gauges are published this often while steps run.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);

/// What a step spends its time on.
#[derive(Clone, Copy, Debug)]
pub enum Stage {
    /// And everything between two steps: requests that come, gauges, sequences that end.
    Schedule,
    Gather,
    Forward,
    /// And streaming.
    Sample,
    /// And squeezes under memory pressure.
    Compress,
}

impl Stage {
    pub const NAMES: [&str; 5] = ["schedule", "gather", "forward", "sample", "compress"];
}

pub struct EngineMetrics {
    published: Option<Instant>,
    /// The end of the last stage.
    lap: Instant,
    /// Of the step that runs, by stage.
    spent: [Duration; Stage::NAMES.len()],
    step_time: [Histogram; Stage::NAMES.len()],
    num_preemptions: usize,
    // Looked up once: these are told of every step.
    prompt_tokens: Counter,
    computed_tokens: Counter,
    generation_tokens: Counter,
    iteration_tokens: Histogram,
    price: Gauge,
    pressure_price: Gauge,
}

impl EngineMetrics {
    /// Of an engine with weights of `weight_bytes`.
    pub fn new(info: &EngineInfo, weight_bytes: usize, max_model_len: usize) -> Self {
        series::begin();
        MEMORY.gauge(labels([("component", "weights")])).set(weight_bytes as f64);
        cache_config(info, max_model_len);
        never_changes();
        let metrics = Self {
            published: None,
            lap: Instant::now(),
            spent: Default::default(),
            step_time: Stage::NAMES.map(|name| STEP_TIME.histogram(labels([("stage", name)]))),
            num_preemptions: 0,
            prompt_tokens: PROMPT_TOKENS.counter(vec![]),
            computed_tokens: prompt_tokens_from("local_compute"),
            generation_tokens: GENERATION_TOKENS.counter(vec![]),
            price: PRICE.gauge(vec![]),
            pressure_price: PRESSURE_PRICE.gauge(vec![]),
            iteration_tokens: ITERATION_TOKENS.histogram(vec![]),
        };
        metrics.idle();
        metrics
    }

    /// Whether it is time for new gauges.
    pub fn is_due(&self) -> bool {
        self.published.is_none_or(|at| at.elapsed() >= PUBLISH_INTERVAL)
    }

    /// Gauges of one moment.
    pub fn publish(&mut self, snapshot: &Snapshot) {
        self.published = Some(Instant::now());
        pages(&snapshot.pages);
        let waiting = Reason::ALL.map(|reason| (reason.name(), snapshot.num_waiting(reason)));
        for (reason, num) in waiting {
            QUEUE.gauge(labels([("reason", reason)])).set(num as f64);
        }
        let num_waiting = waiting.iter().map(|(_, num)| num).sum::<usize>() as f64;
        WAITING.gauge(vec![]).set(num_waiting);
        let num_deferred = snapshot.num_waiting(Reason::Step) as f64;
        let num_short = num_waiting - num_deferred;
        WAITING_BY_REASON.gauge(labels([("reason", "capacity")])).set(num_short);
        WAITING_BY_REASON.gauge(labels([("reason", "deferred")])).set(num_deferred);
        RUNNING.gauge(vec![]).set(snapshot.num_running() as f64);
        BELOW_BUDGET.gauge(vec![]).set(snapshot.num_below_budget() as f64);
        USERS.gauge(vec![]).set(snapshot.num_users as f64);
        let new = snapshot.num_preemptions - self.num_preemptions;
        PREEMPTIONS.counter(vec![]).increment(new as u64);
        self.num_preemptions = snapshot.num_preemptions;
    }

    /// What was before does not count: there was nothing to do.
    pub fn wake(&mut self) {
        self.lap = Instant::now();
    }

    /// The stage has ended; one may have several parts.
    pub fn lap(&mut self, stage: Stage) {
        let now = Instant::now();
        self.spent[stage as usize] += now - std::mem::replace(&mut self.lap, now);
    }

    /// The step has ended.
    pub fn step_ended(&mut self) {
        for (spent, histogram) in self.spent.iter_mut().zip(&self.step_time) {
            histogram.record(std::mem::take(spent));
        }
    }

    /// A step that computed and generated this many tokens. What is computed anew after a preemption
    /// is not among them.
    pub fn step(&self, num_prompt: usize, num_generated: usize) {
        if num_prompt + num_generated == 0 {
            return;
        }
        self.prompt_tokens.increment(num_prompt as u64);
        self.computed_tokens.increment(num_prompt as u64);
        self.generation_tokens.increment(num_generated as u64);
        self.iteration_tokens.record((num_prompt + num_generated) as f64);
    }

    /// A sequence begins that asked for its prompt's tokens in the prefix cache, and found so many.
    pub fn looked_up(&self, prompt_len: usize, num_cached: usize) {
        PREFIX_QUERIES.counter(vec![]).increment(prompt_len as u64);
        PREFIX_HITS.counter(vec![]).increment(num_cached as u64);
        PROMPT_TOKENS_CACHED.counter(vec![]).increment(num_cached as u64);
        let on_device = labels([("source", "device")]);
        PROMPT_TOKENS_CACHED_BY_SOURCE.counter(on_device).increment(num_cached as u64);
        prompt_tokens_from("local_cache_hit").increment(num_cached as u64);
        self.prompt_tokens.increment(num_cached as u64);
    }

    /// A compress event that had something to do.
    pub fn compressed(&self, report: &Report) {
        KV_RECLAIMED.counter(vec![]).increment(report.reclaimed_bytes as u64);
        KV_EVICTED.counter(vec![]).increment(report.num_evicted as u64);
        for (tier, num) in report.demoted.iter().filter(|(_, num)| **num > 0) {
            KV_DEMOTED.counter(labels([("tier", tier.name())])).increment(*num as u64);
        }
        for (stage, took) in report.stages() {
            COMPRESS_TIME.histogram(labels([("stage", stage)])).record(took);
        }
        if let Some(retained) = report.retained {
            RETAINED_ATTRIBUTION.histogram(vec![]).record(retained);
        }
        if let Some(price) = report.price {
            self.price.set(f64::from(price));
        }
    }

    /// Memory pressure had tokens demoted.
    pub fn squeezed(&self, squeeze: &Squeeze) {
        SQUEEZES.counter(vec![]).increment(1);
        self.pressure_price.set(f64::from(squeeze.price));
        squeeze.reports.iter().for_each(|report| self.compressed(report));
    }

    /// Nothing runs: no byte has a price.
    pub fn idle(&self) {
        self.price.set(0.0);
        self.relieved();
    }

    /// There is no memory pressure.
    pub fn relieved(&self) {
        self.pressure_price.set(0.0);
    }

    /// `max_waiting` requests may wait, and so many tokens.
    pub fn refused(&self, error: &EngineError, max_waiting: usize) {
        match error {
            EngineError::QueueFull { num_waiting, .. } => turned_away(match *num_waiting {
                num if num < max_waiting => QUEUED_TOKENS,
                _ => QUEUED_REQUESTS,
            }),
            EngineError::DoesNotFit { .. } => KV_REJECTIONS.counter(vec![]).increment(1),
            _ => {}
        }
    }

    /// The engine failed on a sequence.
    pub fn failed(&self, error: &EngineError) {
        ended(ERROR).increment(1);
        if *error == EngineError::Corrupted {
            CORRUPTED.counter(vec![]).increment(1);
        }
    }

    /// The engine goes on after a panic, and its scheduler counts anew.
    pub fn restarted(&mut self) {
        self.num_preemptions = 0;
        self.spent = Default::default();
        RESTARTS.counter(vec![]).increment(1);
    }

    pub fn finished(&self, reason: FinishReason, kv: &KvUsage) {
        ended(reason.name()).increment(1);
        // One that was cancelled while it waited held nothing.
        if kv.bytes > 0 {
            REQUEST_KV_PEAK.histogram(vec![]).record(kv.peak_bytes as f64);
            COMPRESSION_RATIO.histogram(vec![]).record(kv.f16_bytes as f64 / kv.bytes as f64);
        }
    }
}

/// vLLM's reason for a sequence that the engine failed on; its family is called a success all the
/// same.
const ERROR: &str = "error";

fn ended(reason: &'static str) -> Counter {
    SUCCESS.counter(labels([("finished_reason", reason)]))
}

/// What routers and dashboards of vLLM ask of every engine, this one's being always the same.
fn never_changes() {
    for (state, is_in) in [("awake", 1.0), ("weights_offloaded", 0.0), ("discard_all", 0.0)] {
        SLEEP_STATE.gauge(labels([("sleep_state", state)])).set(is_in);
    }
    let none = [("max_lora", "0"), ("running_lora_adapters", ""), ("waiting_lora_adapters", "")];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    LORA.gauge(labels(none)).set(now);
}

fn prompt_tokens_from(source: &'static str) -> Counter {
    PROMPT_TOKENS_BY_SOURCE.counter(labels([("source", source)]))
}

/// The ledger's gauges: by state, and by state and tier, they add up to the arena.
fn pages(pages: &Pages) {
    let bytes = |num: usize| (num * pages.page_bytes) as f64;
    let Pages { num_pages, num_live, num_cached, .. } = *pages;
    let num_free = num_pages - num_live - num_cached;
    KV_USAGE.gauge(vec![]).set(pages.usage());
    KV_PAGES.gauge(labels([("state", "free")])).set(num_free as f64);
    KV_PAGES.gauge(labels([("state", "live")])).set(pages.num_live as f64);
    KV_PAGES.gauge(labels([("state", "cached")])).set(num_cached as f64);
    KV_BYTES.gauge(labels([("state", "free"), ("tier", "none")])).set(bytes(num_free));
    for (state, tiers) in [("live", &pages.tiers), ("cached", &pages.cached_tiers)] {
        for (tier, num) in tiers.iter() {
            KV_BYTES.gauge(labels([("state", state), ("tier", tier.name())])).set(bytes(*num));
        }
    }
    MEMORY.gauge(labels([("component", "kv_cache")])).set(pages.touched_bytes() as f64);
}

/// vLLM counts in blocks of tokens over all heads; ours hold as many tokens as a page does in F16.
fn cache_config(info: &EngineInfo, max_model_len: usize) {
    let block_size = info.layout.capacity(keepwell_kernels::Tier::F16);
    let num_heads = info.f16_token_bytes / info.layout.f16_token_bytes();
    let num_blocks = info.num_pages / num_heads;
    let num_tokens = num_blocks * block_size;
    let concurrency = num_tokens as f64 / max_model_len as f64;
    let numbers = [
        ("block_size", block_size.to_string()),
        ("num_gpu_blocks", num_blocks.to_string()),
        ("kv_cache_size_tokens", num_tokens.to_string()),
        ("kv_cache_max_concurrency", format!("{concurrency:.2}")),
        ("kv_cache_memory_bytes", (info.num_pages * info.layout.page_bytes).to_string()),
    ];
    let mut all = labels([
        ("cache_dtype", "auto"),
        ("enable_prefix_caching", if info.prefix_cache { "True" } else { "False" }),
    ]);
    all.extend(numbers.map(|(name, value)| Label::new(name, value)));
    CACHE_CONFIG.gauge(all).set(1.0);
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;

    use keepwell_kernels::{PageLayout, PerTier, Tier};

    use super::*;
    use crate::engine::snapshot::{self, SequenceState};
    use crate::metrics::{
        latency::Stopwatch,
        parse::{Sample, parse},
        recorder,
    };
    use crate::sched::SeqId;

    fn metrics() -> EngineMetrics {
        let info = EngineInfo {
            layout: PageLayout::new(64),
            num_pages: 90_000,
            f16_token_bytes: 23_040,
            prefix_cache: true,
        };
        EngineMetrics::new(&info, 98_000_000, 8192)
    }

    /// What an engine tells before it was asked for anything.
    pub fn published() -> Vec<Sample> {
        let recorder = recorder("m").unwrap().build_recorder();
        let _local = metrics::set_default_local_recorder(&recorder);
        metrics().publish(&Snapshot::default());
        parse(&recorder.handle().render())
    }

    fn snapshot(num_sequences: u64) -> Snapshot {
        let sequence = |id| SequenceState {
            id: SeqId(id),
            stage: snapshot::Stage::Decode,
            prompt_len: 100,
            num_computed: 150,
            num_generated: 50,
            max_tokens: 500,
            budget: 0.28,
            asked_budget: 0.5,
            kv_bytes: 1000,
            f16_bytes: 3000,
        };
        let mut tiers = PerTier::default();
        (tiers[Tier::F16], tiers[Tier::K4V4]) = (3, 1);
        let mut cached_tiers = PerTier::default();
        (cached_tiers[Tier::F16], cached_tiers[Tier::K4V4]) = (1, 2);
        let pages = Pages {
            page_bytes: 2112,
            num_pages: 10,
            num_live: 4,
            num_cached: 3,
            num_touched: 7,
            tiers,
            cached_tiers,
        };
        let sequences = (0..num_sequences).map(sequence).collect();
        Snapshot { pages, sequences, num_preemptions: 3, num_users: 2 }
    }

    #[test]
    fn a_snapshot_becomes_gauges_that_add_up_and_preemptions_count_once() {
        let recorder = recorder("m").unwrap().build_recorder();
        let _local = metrics::set_default_local_recorder(&recorder);
        let mut metrics = metrics();
        metrics.publish(&snapshot(5));
        metrics.publish(&snapshot(5));
        let samples = parse(&recorder.handle().render());
        let sum =
            |name: &str| samples.iter().filter(|s| s.name == name).map(|s| s.value).sum::<f64>();
        assert_eq!(sum("keepwell_kv_pages"), 10.0);
        assert_eq!(sum("keepwell_kv_bytes"), 10.0 * 2112.0);
        let is_k4v4 =
            |s: &&Sample| s.name == "keepwell_kv_bytes" && s.label("tier") == Some("k4v4");
        let in_k4v4 = samples.iter().filter(is_k4v4).map(|s| (s.label("state").unwrap(), s.value));
        assert_eq!(BTreeMap::from_iter(in_k4v4), [("cached", 4224.0), ("live", 2112.0)].into());
        assert_eq!(sum("vllm:kv_cache_usage_perc"), 0.4);
        assert_eq!(sum("vllm:num_requests_running"), 5.0);
        assert_eq!(sum("keepwell_requests_below_budget"), 5.0);
        assert_eq!(sum("vllm:num_preemptions_total"), 3.0);
        let config = samples.iter().find(|s| s.name == "vllm:cache_config_info").unwrap();
        // Pages of 8 tokens, 90 heads: 1000 blocks.
        assert_eq!(config.label("block_size"), Some("8"));
        assert_eq!(config.label("num_gpu_blocks"), Some("1000"));
        assert_eq!(config.label("kv_cache_size_tokens"), Some("8000"));
        assert_eq!(config.label("kv_cache_memory_bytes"), Some("190080000"));
        assert_eq!(sum("vllm:engine_sleep_state"), 1.0);
    }

    #[test]
    fn a_full_queue_is_counted_by_what_it_was_full_of_and_memory_apart() {
        let recorder = recorder("m").unwrap().build_recorder();
        let _local = metrics::set_default_local_recorder(&recorder);
        let metrics = metrics();
        for (num_waiting, num_tokens) in [(8, 10), (8, 1000), (7, 1000)] {
            metrics.refused(&EngineError::QueueFull { num_waiting, num_tokens }, 8);
        }
        metrics.refused(&EngineError::DoesNotFit { needed_bytes: 2, total_bytes: 1 }, 8);
        let samples = parse(&recorder.handle().render());
        let count = |name: &str, reason: Option<&str>| {
            let found = samples.iter().find(|s| s.name == name && s.label("reason") == reason);
            found.unwrap().value
        };
        let rejections = "vllm:admission_rejections_total";
        assert_eq!(count(rejections, Some("max_num_queued_reqs")), 2.0);
        assert_eq!(count(rejections, Some("max_num_queued_tokens")), 1.0);
        assert_eq!(count(rejections, Some("max_requests")), 0.0);
        assert_eq!(count("keepwell_kv_budget_rejections_total", None), 1.0);
    }

    /// A step of one sequence of the smallest model takes 3 ms, one of 64 sequences far longer.
    #[test]
    fn what_a_step_tells_costs_less_than_a_hundredth_of_it() {
        let recorder = recorder("m").unwrap().build_recorder();
        let _local = metrics::set_default_local_recorder(&recorder);
        let mut metrics = metrics();
        let mut stopwatch = Stopwatch::start();
        let snapshot = snapshot(64);
        // The machine may be busy with something else: the best of many counts.
        let steps_of_a_publication = PUBLISH_INTERVAL.as_millis() as u32 / 3;
        let interval = |_| {
            let started = Instant::now();
            for _ in 0..steps_of_a_publication {
                metrics.step(0, 1);
                stopwatch.token();
                for stage in [Stage::Schedule, Stage::Gather, Stage::Forward, Stage::Sample] {
                    metrics.lap(stage);
                }
                metrics.step_ended();
            }
            metrics.publish(&snapshot);
            started.elapsed() / steps_of_a_publication
        };
        let best = (0..200).map(interval).min().unwrap();
        println!("{best:?} a step");
        assert!(best < Duration::from_micros(30), "{best:?}");
    }
}
