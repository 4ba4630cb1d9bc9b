//! One stage as a run has it: with its progress on the terminal and the server's metrics beside it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use super::client::Client;
use super::drive::{self, Stage};
use super::record::Record;
use super::scrape::{Scrape, Scraper};
use super::workload::Workload;

const SCRAPE_INTERVAL: Duration = Duration::from_millis(250);

/// What a stage left.
pub struct Measured {
    pub records: Vec<Record>,
    pub series: Vec<Scrape>,
    /// By Ctrl-C: what was measured until then counts.
    pub interrupted: bool,
}

/// Runs a stage to its end, or until Ctrl-C, and scrapes `metrics_url` meanwhile.
pub async fn measure(
    client: &Arc<Client>,
    workload: &Arc<Workload>,
    stage: &Stage,
    metrics_url: &str,
    bar: &ProgressBar,
) -> Measured {
    let scraper = Scraper::start(client.clone(), metrics_url.to_owned(), SCRAPE_INTERVAL);
    let (done, mut ended) = mpsc::unbounded_channel();
    let running = {
        let (client, workload, stage) = (client.clone(), workload.clone(), stage.clone());
        tokio::spawn(async move { drive::run(client, workload, &stage, done).await })
    };
    let (mut records, mut so_far) = (Vec::new(), SoFar::default());
    let start = Instant::now();
    let interrupted = loop {
        let record = tokio::select! {
            record = ended.recv() => record,
            _ = tokio::signal::ctrl_c() => {
                running.abort();
                break true;
            }
        };
        let Some(record) = record else { break false };
        so_far.add(&record);
        records.push(record);
        bar.inc(1);
        bar.set_message(so_far.line(start.elapsed()));
    };
    Measured { records, series: scraper.stop().await, interrupted }
}

pub fn progress(name: String, stage: &Stage, workload: &Workload) -> ProgressBar {
    let turns = if workload.dataset.is_empty() { workload.turns } else { 1 };
    let bar = ProgressBar::new((stage.num_sessions * turns) as u64);
    let template = "{prefix}  {bar:24} {pos}/{len}  {elapsed}  {msg}";
    // The template is a constant.
    bar.set_style(ProgressStyle::with_template(template).expect("a valid template"));
    bar.set_prefix(name);
    bar
}

/// Sums over the requests that have ended: a line about them must not cost more the more there are.
#[derive(Default)]
struct SoFar {
    num_ok: usize,
    num_failed: usize,
    num_tokens: usize,
    /// Seconds, of the last requests that had one.
    ttfts: VecDeque<f64>,
}

impl SoFar {
    const NUM_TTFTS: usize = 20;

    fn add(&mut self, record: &Record) {
        if record.is_ok() {
            self.num_ok += 1;
            self.num_tokens += record.output_tokens;
        } else {
            self.num_failed += 1;
        }
        self.ttfts.extend(record.ttft);
        if self.ttfts.len() > Self::NUM_TTFTS {
            self.ttfts.pop_front();
        }
    }

    /// `3.1 req/s, 200 tok/s, TTFT 80 ms, 2 failed`
    fn line(&self, elapsed: Duration) -> String {
        let seconds = elapsed.as_secs_f64().max(1e-9);
        let (rate, tokens) = (self.num_ok as f64 / seconds, self.num_tokens as f64 / seconds);
        let ttft = 1e3 * self.ttfts.iter().sum::<f64>() / self.ttfts.len().max(1) as f64;
        let mut line = format!("{rate:.1} req/s, {tokens:.0} tok/s, TTFT {ttft:.0} ms");
        if self.num_failed > 0 {
            line += &format!(", {} failed", self.num_failed);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::record::Outcome;

    #[test]
    fn the_line_counts_all_requests_and_takes_the_ttft_of_the_last() {
        let mut so_far = SoFar::default();
        let ok = |ttft| Record { ttft: Some(ttft), output_tokens: 5, ..Record::default() };
        so_far.add(&ok(9.0));
        (0..SoFar::NUM_TTFTS).for_each(|_| so_far.add(&ok(0.1)));
        so_far.add(&Record { outcome: Outcome::Timeout, output_tokens: 3, ..Record::default() });
        let line = so_far.line(Duration::from_secs(2));
        assert_eq!(line, "10.5 req/s, 52 tok/s, TTFT 100 ms, 1 failed");
    }
}
