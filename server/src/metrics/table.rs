//! Every family that the server emits.

use metrics::{Counter, Gauge, Histogram, Label};

use super::buckets;

/// A metric with all its series.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    /// Those that its series differ in. All have `model_name` besides, and but for [`REJECTIONS`]
    /// `engine`.
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    /// Upper bounds, ascending.
    Histogram(&'static [f64]),
}

impl Family {
    pub fn counter(&self, labels: Vec<Label>) -> Counter {
        metrics::counter!(self.name, self.of_engine(labels))
    }

    pub fn gauge(&self, labels: Vec<Label>) -> Gauge {
        metrics::gauge!(self.name, self.of_engine(labels))
    }

    pub fn histogram(&self, labels: Vec<Label>) -> Histogram {
        metrics::histogram!(self.name, self.of_engine(labels))
    }

    /// With the engine's index, of which this server has one. What is turned away reached none.
    fn of_engine(&self, mut labels: Vec<Label>) -> Vec<Label> {
        if self.name != REJECTIONS.name {
            labels.insert(0, Label::from_static_parts("engine", "0"));
        }
        labels
    }
}

pub(super) fn labels<const N: usize>(pairs: [(&'static str, &'static str); N]) -> Vec<Label> {
    pairs.into_iter().map(|(name, value)| Label::from_static_parts(name, value)).collect()
}

macro_rules! families {
    ($($id:ident: $kind:expr, $name:literal $([$($label:literal),*])?, $help:literal;)*) => {
        $(pub const $id: Family = Family {
            name: $name,
            kind: $kind,
            labels: &[$($($label),*)?],
            help: $help,
        };)*
        /// In the order of `/metrics`' documentation.
        pub static FAMILIES: &[Family] = &[$($id),*];
    };
}

use Kind::{Counter as C, Gauge as G, Histogram as H};

families! {
    RUNNING: G, "vllm:num_requests_running", "Sequences that are computed";
    WAITING: G, "vllm:num_requests_waiting", "Sequences that wait to be computed";
    WAITING_BY_REASON: G, "vllm:num_requests_waiting_by_reason" ["reason"], "Waiting sequences: `capacity` waits for memory or a place, `deferred` for anything else";
    KV_USAGE: G, "vllm:kv_cache_usage_perc", "Share, from 0 to 1, of the KV cache that live requests hold; prefixes kept for later ones are not among it";
    CACHE_CONFIG: G, "vllm:cache_config_info" ["block_size", "num_gpu_blocks", "kv_cache_size_tokens", "kv_cache_max_concurrency", "kv_cache_memory_bytes", "cache_dtype", "enable_prefix_caching"], "1; the labels describe the KV cache in blocks of the tokens that a page holds in F16, over all heads";
    SLEEP_STATE: G, "vllm:engine_sleep_state" ["sleep_state"], "1 for the state that the engine is in: it is always awake";
    LORA: G, "vllm:lora_requests_info" ["max_lora", "running_lora_adapters", "waiting_lora_adapters"], "The labels name LoRA adapters, of which this server takes none; the value is the Unix time since when";
    PREEMPTIONS: C, "vllm:num_preemptions_total", "Times that a sequence gave its memory back, to be computed anew";
    PREFIX_QUERIES: C, "vllm:prefix_cache_queries_total", "Prompt tokens that were looked for in the prefix cache";
    PREFIX_HITS: C, "vllm:prefix_cache_hits_total", "Prompt tokens that were found there";
    EXTERNAL_QUERIES: C, "vllm:external_prefix_cache_queries_total", "Always 0: there is no prefix cache outside of the server";
    EXTERNAL_HITS: C, "vllm:external_prefix_cache_hits_total", "Always 0: there is no prefix cache outside of the server";
    MM_QUERIES: C, "vllm:mm_cache_queries_total", "Always 0: there are no pictures and sounds to cache";
    MM_HITS: C, "vllm:mm_cache_hits_total", "Always 0: there are no pictures and sounds to cache";
    PROMPT_TOKENS: C, "vllm:prompt_tokens_total", "Prompt tokens, computed or from the prefix cache, each once";
    PROMPT_TOKENS_BY_SOURCE: C, "vllm:prompt_tokens_by_source_total" ["source"], "Prompt tokens by where their K and V come from: `local_compute` or `local_cache_hit`; `external_kv_transfer`, as vLLM has it, is always 0";
    PROMPT_TOKENS_CACHED: C, "vllm:prompt_tokens_cached_total", "Prompt tokens from the prefix cache";
    PROMPT_TOKENS_CACHED_BY_SOURCE: C, "vllm:prompt_tokens_cached_by_source_total" ["source"], "The same by the memory that had them: `device` is the only one here";
    GENERATION_TOKENS: C, "vllm:generation_tokens_total", "Tokens generated";
    ITERATION_TOKENS: H(buckets::ITERATION_TOKENS), "vllm:iteration_tokens_total", "Prompt and generated tokens of a step";
    SUCCESS: C, "vllm:request_success_total" ["finished_reason"], "Sequences that ended, by reason";
    CORRUPTED: C, "vllm:corrupted_requests_total", "Sequences that failed because what the model computed was not a number";
    RESTARTS: C, "keepwell_engine_restarts_total", "Times that the engine went on after a panic, with an empty cache";
    REJECTIONS: C, "vllm:admission_rejections_total" ["reason"], "Requests turned away: `max_num_queued_reqs` and `max_num_queued_tokens` where the queue is full, `max_requests` where as many are being answered";
    TIME_TO_FIRST_TOKEN: H(buckets::TIME_TO_FIRST_TOKEN), "vllm:time_to_first_token_seconds", "From the request's arrival to its first token";
    INTER_TOKEN_LATENCY: H(buckets::TIME_PER_TOKEN), "vllm:inter_token_latency_seconds", "Between two tokens of a sequence";
    TIME_PER_OUTPUT_TOKEN: H(buckets::TIME_PER_TOKEN), "vllm:request_time_per_output_token_seconds", "Mean time of a sequence's tokens after the first";
    E2E_LATENCY: H(buckets::REQUEST_TIME), "vllm:e2e_request_latency_seconds", "From the request's arrival to the end of the sequence";
    QUEUE_TIME: H(buckets::REQUEST_TIME), "vllm:request_queue_time_seconds", "Until a sequence was first computed";
    INFERENCE_TIME: H(buckets::REQUEST_TIME), "vllm:request_inference_time_seconds", "From a sequence's first step to its last token";
    PREFILL_TIME: H(buckets::REQUEST_TIME), "vllm:request_prefill_time_seconds", "From a sequence's first step to its first token";
    DECODE_TIME: H(buckets::REQUEST_TIME), "vllm:request_decode_time_seconds", "From a sequence's first token to its last";
    REQUEST_PROMPT_TOKENS: H(buckets::TOKENS), "vllm:request_prompt_tokens", "Prompt tokens of a sequence";
    REQUEST_GENERATION_TOKENS: H(buckets::TOKENS), "vllm:request_generation_tokens", "Tokens that a sequence generated";
    REQUEST_MAX_GENERATION_TOKENS: H(buckets::TOKENS), "vllm:request_max_num_generation_tokens", "The most tokens that a choice of a request generated; each prompt is a request";
    REQUEST_PARAMS_N: H(buckets::NUM_CHOICES), "vllm:request_params_n", "`n` of a request that ended with an answer; each prompt is one";
    REQUEST_PARAMS_MAX_TOKENS: H(buckets::TOKENS), "vllm:request_params_max_tokens", "Tokens that a sequence was allowed to generate";
    REQUEST_PREEMPTIONS: H(buckets::PREEMPTIONS), "vllm:request_num_preemptions", "Times that a sequence was preempted";
    REQUEST_PREFILL_COMPUTED: H(buckets::TOKENS), "vllm:request_prefill_kv_computed_tokens", "Prompt tokens of a sequence that no cache gave";
    PROCESS_MEMORY: G, "process_resident_memory_bytes", "Resident bytes of the process";
    DEVICE_MEMORY: G, "keepwell_device_memory_bytes", "Bytes taken, by whomever, of the device's own memory; 0 where the CPU computes";
    MEMORY: G, "keepwell_memory_bytes" ["component"], "Bytes by component, of the device's memory where it has its own, else of the process: `weights`; `kv_cache`, on a CPU the part of the arena that was ever used; `rest` is what else is taken, not known to the byte: activations, texts, indices, code, and on a device what others have there";
    KV_BYTES: G, "keepwell_kv_bytes" ["state", "tier"], "Bytes of KV pages by state and tier, metadata and slack included: `live` is held by requests, `cached` kept for later ones until somebody needs the page, `free` has the tier `none`; all of them are the arena";
    KV_PAGES: G, "keepwell_kv_pages" ["state"], "KV pages by state; all of them are the arena";
    KV_DEMOTED: C, "keepwell_kv_entries_demoted_total" ["tier"], "(token, layer, KV head) entries moved into a smaller tier";
    KV_EVICTED: C, "keepwell_kv_entries_evicted_total", "(token, layer, KV head) entries evicted";
    KV_RECLAIMED: C, "keepwell_kv_reclaimed_bytes_total", "Bytes of the pages that compress events gave back";
    KV_REJECTIONS: C, "keepwell_kv_budget_rejections_total", "Requests refused because the whole arena could not hold them at their budget";
    STEP_TIME: H(buckets::STAGE_TIME), "keepwell_step_seconds" ["stage"], "Stages of a step: schedule (and all between two steps), gather, forward, sample, compress";
    COMPRESS_TIME: H(buckets::STAGE_TIME), "keepwell_compress_seconds" ["stage"], "Stages of a compress event: score, price, compact";
    PRICE: G, "keepwell_price", "Price of a byte in the last compress event that was short of pages: attribution weighted distortion that a byte must save to be kept; 0 while nothing runs";
    PRESSURE_PRICE: G, "keepwell_pressure_price", "Price of a byte that memory pressure puts on the tokens of all running sequences; 0 without pressure";
    SQUEEZES: C, "keepwell_squeezes_total", "Times that memory pressure had the cheapest tokens of running sequences demoted";
    COMPRESSION_RATIO: H(buckets::RATIO), "keepwell_kv_compression_ratio", "F16 bytes of a sequence's tokens over the bytes it held when it ended";
    RETAINED_ATTRIBUTION: H(buckets::SHARE), "keepwell_kv_retained_attribution", "Share of the attribution that is still held after a compress event, mean over heads";
    REQUEST_KV_PEAK: H(buckets::BYTES), "keepwell_request_kv_peak_bytes", "The most KV bytes that a sequence held";
    BELOW_BUDGET: G, "keepwell_requests_below_budget", "Running sequences that memory pressure holds below the budget they asked for";
    USERS: G, "keepwell_users", "Users, by API key or `user`, who have sequences that run or wait";
    QUEUE: G, "keepwell_queue" ["reason"], "Waiting sequences by what they wait for: `sequences` (a place), `memory`, `step` (the next one), `preempted` (memory, again)";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_follow_the_conventions_of_prometheus() {
        let mut seen = HashSet::new();
        for Family { name, kind, help, .. } in FAMILIES {
            assert!(seen.insert(name), "{name} is there twice");
            assert!(!help.is_empty() && !help.contains('\n'));
            // A histogram of vLLM's, in spite of its name.
            let is_total = name.ends_with("_total") && *name != "vllm:iteration_tokens_total";
            assert_eq!(is_total, *kind == Kind::Counter, "{name}");
        }
    }

    #[test]
    fn buckets_ascend() {
        for family in FAMILIES {
            if let Kind::Histogram(bounds) = family.kind {
                assert!(bounds.is_sorted_by(|a, b| a < b), "{}", family.name);
            }
        }
    }
}
