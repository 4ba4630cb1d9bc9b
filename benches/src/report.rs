//! What a measurement looks like, on the terminal and as JSON.

use serde::Serialize;

/// One measured row.
#[derive(Debug, Serialize)]
pub struct Row {
    /// `prefill` or `decode`.
    pub test: &'static str,
    /// Tokens of each sequence.
    pub tokens: usize,
    /// Sequences at once.
    pub batch: usize,
    pub kv_budget: f32,
    pub backend: String,
    /// Over all sequences: median, least and most of the repetitions.
    pub tokens_per_s: Spread,
    /// KV bytes of all sequences at their end.
    pub kv_bytes: usize,
    /// Resident bytes of the process, peak.
    pub rss_bytes: usize,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// # Panics
    /// When there is no value.
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let (min, max) = (values[0], values[values.len() - 1]);
        Self { median: values[values.len() / 2], min, max }
    }
}

pub fn print(rows: &[Row]) {
    println!(
        "test     tokens  batch  budget  backend   tokens/s (min - max)        KV MiB  RSS MiB"
    );
    for row in rows {
        let Spread { median, min, max } = row.tokens_per_s;
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        println!(
            "{:8} {:6}  {:5}  {:6}  {:8}  {median:7.1} ({min:.1} - {max:.1})  {:10.1}  {:7.0}",
            row.test,
            row.tokens,
            row.batch,
            row.kv_budget,
            row.backend,
            mib(row.kv_bytes),
            mib(row.rss_bytes),
        );
    }
}

/// Peak resident bytes of this process; 0 where the system does not tell.
pub fn peak_rss() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
    kib.unwrap_or(0) * 1024
}
