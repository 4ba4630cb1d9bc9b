//! From records to figures.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::arrivals::Load;
use super::record::{Outcome, Record};
use super::scrape::Scrape;
use super::slo::Slo;

/// What the figures mean, printed with every report.
pub const DEFINITIONS: &[(&str, &str)] = &[
    ("TTFT", "time to first token: from sending the request to the first chunk with text"),
    ("ITL", "inter-token latency: time between two chunks with text, each gap counted"),
    ("TPOT", "time per output token: (E2E - TTFT) / (output tokens - 1), one value per request"),
    ("E2E", "from sending the request to the last chunk with text"),
    ("goodput", "requests per second that met every SLO; without SLOs, those that succeeded"),
    ("tokens", "counted by the server, in `usage`; percentiles are of requests that succeeded"),
    ("closed loop", "so many requests at a time: a slow server is asked less"),
    ("open loop", "requests arrive whatever the server does: a slow server grows a queue"),
];

/// Milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
    /// At 0, 5, ..., 95, 99, 99.9 and 100 %.
    pub curve: Vec<(f64, f64)>,
}

impl Latency {
    /// Of seconds.
    pub fn new(seconds: impl Iterator<Item = f64>) -> Self {
        // Microseconds, up to an hour, to three digits.
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 3_600_000_000, 3)
            .expect("the bounds are in order");
        seconds.for_each(|s| histogram.saturating_record((s * 1e6).round().max(1.0) as u64));
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |percentile: f64| histogram.value_at_percentile(percentile) as f64 / 1e3;
        let steps = (0..20).map(|step| f64::from(step) * 5.0).chain([99.0, 99.9, 100.0]);
        Self {
            count: histogram.len(),
            mean: histogram.mean() / 1e3,
            p50: at(50.0),
            p90: at(90.0),
            p95: at(95.0),
            p99: at(99.0),
            max: at(100.0),
            curve: steps.map(|step| (step, at(step))).collect(),
        }
    }

    /// `None` when nothing was measured.
    pub fn measured(&self, percentile: fn(&Self) -> f64) -> Option<f64> {
        (self.count > 0).then(|| percentile(self))
    }
}

/// One stage's figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    pub load: Load,
    /// From the stage's start to the end of its last request.
    pub seconds: f64,
    pub num_ok: usize,
    pub num_timeouts: usize,
    /// By reason.
    pub errors: Vec<(String, usize)>,
    pub requests_per_s: f64,
    pub prompt_tokens_per_s: f64,
    pub output_tokens_per_s: f64,
    /// Requests per second that met every SLO.
    pub goodput: f64,
    /// The same, as a share of all that were sent.
    pub goodput_share: f64,
    pub ttft: Latency,
    pub itl: Latency,
    pub tpot: Latency,
    pub e2e: Latency,
    /// Open loop: how late the client itself was to send.
    pub late: Latency,
    pub mean_prompt_tokens: f64,
    pub mean_output_tokens: f64,
    /// Share of the prompt tokens that the server says it had.
    pub cached_share: f64,
    /// Some answers had no `usage`: their tokens are chunks.
    pub is_estimate: bool,
    /// Of a request: mean of `usage.kv_cache`, where the server has it.
    pub kv_bytes: Option<f64>,
    pub kv_f16_bytes: Option<f64>,
    /// Of the server: the most live bytes that a scrape found.
    pub peak_kv_bytes: Option<f64>,
    pub peak_waiting: Option<f64>,
    pub num_preemptions: Option<f64>,
    /// What the server took to answer `/metrics`.
    #[serde(default)]
    pub scrape: Latency,
    pub series: Vec<Scrape>,
}

impl Summary {
    pub fn new(load: Load, records: &[Record], series: Vec<Scrape>, slos: &[Slo]) -> Self {
        let ok: Vec<_> = records.iter().filter(|record| record.is_ok()).collect();
        let seconds = records.iter().map(|r| r.sent + r.e2e).fold(1e-9, f64::max);
        let sum = |of: fn(&Record) -> usize| ok.iter().map(|r| of(r)).sum::<usize>() as f64;
        let (prompt, output) = (sum(|r| r.prompt_tokens), sum(|r| r.output_tokens));
        let good = ok.iter().filter(|r| slos.iter().all(|slo| slo.is_met(r))).count() as f64;
        let num_ok = ok.len().max(1) as f64;
        let kv: Vec<_> = ok.iter().filter_map(|record| record.kv).collect();
        let mean_kv = |of: fn(&super::record::KvCache) -> f64| {
            (!kv.is_empty()).then(|| kv.iter().map(of).sum::<f64>() / kv.len() as f64)
        };
        let peak = |of: fn(&Scrape) -> f64| series.iter().map(of).reduce(f64::max);
        let preemptions = |scrape: Option<&Scrape>| scrape.map(|scrape| scrape.preemptions);
        let (first, last) = (preemptions(series.first()), preemptions(series.last()));
        Self {
            load,
            seconds,
            num_ok: ok.len(),
            num_timeouts: records.iter().filter(|r| r.outcome == Outcome::Timeout).count(),
            errors: errors(records),
            requests_per_s: ok.len() as f64 / seconds,
            prompt_tokens_per_s: prompt / seconds,
            output_tokens_per_s: output / seconds,
            goodput: good / seconds,
            goodput_share: good / records.len().max(1) as f64,
            ttft: Latency::new(ok.iter().filter_map(|r| r.ttft)),
            itl: Latency::new(ok.iter().flat_map(|r| &r.gaps).map(|gap| f64::from(*gap))),
            tpot: Latency::new(ok.iter().filter_map(|r| r.tpot())),
            e2e: Latency::new(ok.iter().map(|r| r.e2e)),
            late: Latency::new(records.iter().map(|r| r.late)),
            mean_prompt_tokens: prompt / num_ok,
            mean_output_tokens: output / num_ok,
            cached_share: sum(|r| r.cached_tokens) / prompt.max(1.0),
            is_estimate: ok.iter().any(|r| r.is_estimate),
            kv_bytes: mean_kv(|kv| kv.bytes),
            kv_f16_bytes: mean_kv(|kv| kv.f16_bytes),
            peak_kv_bytes: peak(Scrape::live_bytes).filter(|bytes| *bytes > 0.0),
            peak_waiting: peak(|scrape| scrape.waiting),
            num_preemptions: first.zip(last).map(|(first, last)| last - first),
            scrape: Latency::new(series.iter().map(|scrape| scrape.took)),
            series,
        }
    }

    /// What a scrape cost, in words; `None` for a server without metrics.
    pub fn scrape_line(&self) -> Option<String> {
        let Latency { count, p50, p90, p99, .. } = self.scrape;
        let line =
            format!("/metrics took {p50:.2} ms (p90 {p90:.2}, p99 {p99:.2}) over {count} scrapes");
        (count > 0).then_some(line)
    }

    /// Of the server: the most of its cache that a scrape found in use; of others than Keepwell it is
    /// all that is known of it.
    pub fn peak_kv_percent(&self) -> Option<f64> {
        self.series.iter().map(|scrape| 100.0 * scrape.kv_usage).reduce(f64::max)
    }

    pub fn num_errors(&self) -> usize {
        self.errors.iter().map(|(_, count)| count).sum()
    }
}

fn errors(records: &[Record]) -> Vec<(String, usize)> {
    let mut errors: Vec<(String, usize)> = Vec::new();
    for record in records {
        let Outcome::Error(reason) = &record.outcome else { continue };
        match errors.iter_mut().find(|(known, _)| known == reason) {
            Some((_, count)) => *count += 1,
            None => errors.push((reason.clone(), 1)),
        }
    }
    errors.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sent: f64, ttft: f64, gaps: &[f32]) -> Record {
        let e2e = ttft + gaps.iter().map(|gap| f64::from(*gap)).sum::<f64>();
        Record {
            sent,
            ttft: Some(ttft),
            gaps: gaps.to_vec(),
            e2e,
            prompt_tokens: 10,
            output_tokens: gaps.len() + 1,
            ..Record::default()
        }
    }

    fn near(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 2e-3, "{found} is not {expected}");
    }

    #[test]
    fn the_figures_are_what_their_definitions_say() {
        let failed = |outcome| Record { outcome, e2e: 2.0, ..Record::default() };
        let records = [
            record(0.0, 0.1, &[0.01, 0.03]),
            record(0.5, 0.3, &[0.02, 0.02]),
            failed(Outcome::Timeout),
            failed(Outcome::Error("429".into())),
        ];
        let slos = ["ttft:200".parse().unwrap(), "tpot:50".parse().unwrap()];
        let summary = Summary::new(Load::Concurrency(2), &records, vec![], &slos);
        assert_eq!((summary.num_ok, summary.num_timeouts), (2, 1));
        assert_eq!(summary.errors, [("429".to_owned(), 1)]);
        near(summary.seconds, 2.0);
        near(summary.requests_per_s, 1.0);
        near(summary.output_tokens_per_s, 3.0);
        near(summary.goodput, 0.5);
        near(summary.goodput_share, 0.25);
        near(summary.ttft.max, 300.0);
        near(summary.tpot.p50, 20.0);
        assert_eq!((summary.itl.count, summary.e2e.count), (4, 2));
        near(summary.itl.max, 30.0);
        near(summary.e2e.max, 340.0);
    }

    #[test]
    fn percentiles_of_a_known_distribution_are_right_to_three_digits() {
        let latency = Latency::new((1..=10_000).map(|ms| f64::from(ms) / 1e3));
        for (found, expected) in
            [(latency.p50, 5000.0), (latency.p90, 9000.0), (latency.p99, 9900.0)]
        {
            near(found, expected);
        }
        near(latency.mean, 5000.5);
    }

    #[test]
    fn nothing_measured_is_no_latency_and_no_division_by_zero() {
        let summary = Summary::new(Load::Trace, &[], vec![], &[]);
        assert_eq!((summary.ttft.count, summary.goodput_share), (0, 0.0));
        assert!(summary.requests_per_s == 0.0 && summary.cached_share == 0.0);
    }
}
