//! One sequence's way through the engine: when what happened, and what was counted already.

use std::time::Instant;

use metrics::Histogram;
use tracing::{Span, debug, field::Empty, info_span};

use super::{
    Family,
    table::{
        DECODE_TIME, INFERENCE_TIME, PREFILL_TIME, QUEUE_TIME, REQUEST_GENERATION_TOKENS,
        REQUEST_PARAMS_MAX_TOKENS, REQUEST_PREEMPTIONS, REQUEST_PREFILL_COMPUTED,
        REQUEST_PROMPT_TOKENS, TIME_PER_OUTPUT_TOKEN,
    },
};
use crate::sched::{Entry, Sequence};

#[derive(Clone, Debug)]
pub struct Lifecycle {
    /// False where somebody only looks again at what was counted already.
    pub is_counted: bool,
    queued: Instant,
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    /// Prompt tokens that the prefix cache gave when the sequence was first computed.
    pub num_prompt_cached: usize,
    /// Those and the ones computed since.
    num_prompt_counted: usize,
    /// From here to the end; the names are those of OpenTelemetry's conventions for models.
    span: Span,
}

impl Lifecycle {
    /// `request` is the span of the request that asked.
    pub fn queued(request: &Span, is_counted: bool) -> Self {
        let span = info_span!(
            parent: request,
            "sequence",
            gen_ai.usage.input_tokens = Empty,
            gen_ai.usage.output_tokens = Empty,
            gen_ai.latency.time_in_queue = Empty,
            gen_ai.latency.time_in_model_prefill = Empty,
            gen_ai.latency.time_in_model_decode = Empty,
            keepwell.kv.budget = Empty,
        );
        Self {
            span,
            is_counted,
            queued: Instant::now(),
            scheduled: None,
            first_token: None,
            last_token: None,
            num_prompt_cached: 0,
            num_prompt_counted: 0,
        }
    }

    /// Tells whether this is the first part of the sequence that is computed. What comes before it
    /// was in the cache.
    pub fn begins(&mut self, entry: &Entry, prompt_len: usize, now: Instant) -> bool {
        if self.scheduled.is_some() {
            return false;
        }
        self.scheduled = Some(now);
        self.num_prompt_cached = entry.start.min(prompt_len);
        self.num_prompt_counted = self.num_prompt_cached;
        true
    }

    /// A part of the sequence is computed. Returns its prompt tokens that were not counted before:
    /// what a preempted sequence computes anew counts once.
    pub fn computed(&mut self, entry: &Entry, prompt_len: usize) -> usize {
        let end = (entry.start + entry.num_tokens).min(prompt_len);
        let new = end.saturating_sub(self.num_prompt_counted);
        self.num_prompt_counted += new;
        new
    }

    pub fn token(&mut self, now: Instant) {
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
    }

    /// Records what is known of a sequence once it ended.
    pub fn record(&self, seq: &Sequence) {
        let num_generated = seq.num_generated();
        self.span.record("gen_ai.usage.input_tokens", seq.prompt_len);
        self.span.record("gen_ai.usage.output_tokens", num_generated);
        self.span.record("keepwell.kv.budget", f64::from(seq.budget));
        debug!(
            parent: &self.span,
            sequence = seq.id.0,
            preemptions = seq.num_preemptions,
            seconds = self.queued.elapsed().as_secs_f64(),
            "sequence ended"
        );
        for (family, tokens) in [
            (REQUEST_PROMPT_TOKENS, seq.prompt_len),
            (REQUEST_PREFILL_COMPUTED, self.num_prompt_counted - self.num_prompt_cached),
            (REQUEST_GENERATION_TOKENS, num_generated),
            (REQUEST_PARAMS_MAX_TOKENS, seq.max_len - seq.prompt_len),
            (REQUEST_PREEMPTIONS, seq.num_preemptions),
        ] {
            self.histogram(family).record(tokens as f64);
        }
        let Some(scheduled) = self.scheduled else { return };
        let in_queue = scheduled - self.queued;
        self.histogram(QUEUE_TIME).record(in_queue);
        self.span.record("gen_ai.latency.time_in_queue", in_queue.as_secs_f64());
        let (Some(first), Some(last)) = (self.first_token, self.last_token) else { return };
        let (prefill, decode) = (first - scheduled, last - first);
        self.histogram(PREFILL_TIME).record(prefill);
        self.histogram(DECODE_TIME).record(decode);
        self.span.record("gen_ai.latency.time_in_model_prefill", prefill.as_secs_f64());
        self.span.record("gen_ai.latency.time_in_model_decode", decode.as_secs_f64());
        self.histogram(INFERENCE_TIME).record(last - scheduled);
        if let Some(others) = num_generated.checked_sub(1).filter(|n| *n > 0) {
            let mean = decode.as_secs_f64() / others as f64;
            self.histogram(TIME_PER_OUTPUT_TOKEN).record(mean);
        }
    }

    fn histogram(&self, family: Family) -> Histogram {
        if self.is_counted { family.histogram(vec![]) } else { Histogram::noop() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sched::SeqId;

    fn entry(start: usize, num_tokens: usize) -> Entry {
        let (has_event, samples) = (false, false);
        Entry { id: SeqId(1), start, num_tokens, samples, has_event, scoring: None, writes: vec![] }
    }

    #[test]
    fn prompt_tokens_count_once_however_often_they_are_computed() {
        let mut life = Lifecycle::queued(&Span::none(), true);
        let now = Instant::now();
        assert!(life.begins(&entry(0, 6), 10, now) && !life.begins(&entry(6, 4), 10, now));
        let counts: Vec<_> = [(0, 6), (6, 4), (10, 1), (0, 8), (8, 3), (11, 1)]
            .map(|(start, num)| life.computed(&entry(start, num), 10))
            .into();
        assert_eq!(counts, [6, 4, 0, 0, 0, 0]);
    }

    #[test]
    fn tokens_from_the_cache_are_not_computed() {
        let mut life = Lifecycle::queued(&Span::none(), true);
        assert!(life.begins(&entry(8, 2), 10, Instant::now()));
        assert_eq!((life.num_prompt_cached, life.computed(&entry(8, 2), 10)), (8, 2));
        // After a preemption other tokens are in the cache.
        assert!(!life.begins(&entry(0, 10), 10, Instant::now()));
        assert_eq!((life.num_prompt_cached, life.computed(&entry(0, 10), 10)), (8, 0));
    }
}
