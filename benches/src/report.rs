//! What a measurement looks like, on the terminal and as JSON.

use serde::Serialize;

/// One measured row.
#[derive(Debug, Serialize)]
pub struct Row {
    /// `prefill` or `decode`.
    pub test: &'static str,
    /// Tokens of each sequence that were measured.
    pub tokens: usize,
    /// Tokens of each sequence that were there before.
    pub depth: usize,
    /// Sequences at once.
    pub batch: usize,
    pub kv_budget: f32,
    pub threads: usize,
    /// Over all sequences: the median of the repetitions.
    pub tokens_per_s: f64,
    pub tokens_per_s_min: f64,
    pub tokens_per_s_max: f64,
    /// From the median.
    pub ms_per_token: f64,
    /// Weights and cache that a step reads, over its tokens: the mean.
    pub bytes_per_token: f64,
    /// `bytes_per_token` times `tokens_per_s`, as a share of what memory was measured to give.
    pub share_of_bandwidth: f64,
    /// Resident bytes of the process: the peak since the row began.
    pub rss_bytes: usize,
    /// Mean divergence of the predictions from those in f32 with an exact cache, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_to_f32: Option<f64>,
    pub model: String,
    pub backend: String,
}

/// What a row is about.
#[derive(Clone, Debug)]
pub struct Case {
    pub test: &'static str,
    pub tokens: usize,
    pub depth: usize,
    pub batch: usize,
    pub kv_budget: f32,
    pub model: String,
    pub backend: String,
}

/// One repetition.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Over all sequences.
    pub tokens: f64,
    pub seconds: f64,
    pub bytes: f64,
}

impl Row {
    /// `bandwidth` is in bytes per second.
    ///
    /// # Panics
    /// When there is no sample.
    pub fn new(case: Case, samples: &[Sample], bandwidth: f64) -> Self {
        let mut rates: Vec<_> = samples.iter().map(|s| s.tokens / s.seconds).collect();
        rates.sort_by(f64::total_cmp);
        let tokens_per_s = rates[rates.len() / 2];
        let sum = |part: fn(&Sample) -> f64| samples.iter().map(part).sum::<f64>();
        let bytes_per_token = sum(|s| s.bytes) / sum(|s| s.tokens);
        Self {
            test: case.test,
            tokens: case.tokens,
            depth: case.depth,
            batch: case.batch,
            kv_budget: case.kv_budget,
            threads: rayon::current_num_threads(),
            tokens_per_s,
            tokens_per_s_min: rates[0],
            tokens_per_s_max: rates[rates.len() - 1],
            ms_per_token: 1e3 / tokens_per_s,
            bytes_per_token,
            share_of_bandwidth: bytes_per_token * tokens_per_s / bandwidth,
            rss_bytes: peak_rss(),
            kl_to_f32: None,
            model: case.model,
            backend: case.backend,
        }
    }

    pub fn print_head() {
        println!(
            "test     tokens  depth  batch  budget  backend    tokens/s  (min - max)       \
             MB/token  of bandwidth  RSS MiB  KL to f32"
        );
    }

    pub fn print(&self) {
        let spread = format!("({:.1} - {:.1})", self.tokens_per_s_min, self.tokens_per_s_max);
        let kl = self.kl_to_f32.map(|kl| format!("{kl:.6}")).unwrap_or_default();
        println!(
            "{:8} {:6}  {:5}  {:5}  {:6}  {:8}  {:9.1}  {spread:17} {:8.1}  {:10.0} %  {:7.0}  {kl}",
            self.test,
            self.tokens,
            self.depth,
            self.batch,
            self.kv_budget,
            self.backend,
            self.tokens_per_s,
            self.bytes_per_token / 1e6,
            self.share_of_bandwidth * 100.0,
            self.rss_bytes as f64 / f64::from(1 << 20),
        );
    }
}

/// Peak resident bytes of this process; 0 where the system does not tell.
fn peak_rss() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
    kib.unwrap_or(0) * 1024
}

/// Lets the peak begin anew from what is resident now. Where the system cannot, it stays the peak
/// of all rows so far.
pub fn reset_peak_rss() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
