//! The server's own metrics while it is under load.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keepwell_server::metrics::parse::parse;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::client::Client;

/// What one scrape said. Other servers than Keepwell have no bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scrape {
    /// Seconds after the stage's start.
    pub at: f64,
    pub running: f64,
    pub waiting: f64,
    /// From 0 to 1.
    pub kv_usage: f64,
    /// Live bytes.
    pub kv_bytes: BTreeMap<String, f64>,
    pub preemptions: f64,
    /// Seconds that the answer took.
    #[serde(default)]
    pub took: f64,
}

impl Scrape {
    pub fn live_bytes(&self) -> f64 {
        self.kv_bytes.values().sum()
    }
}

/// Scrapes in the background until told to stop.
pub struct Scraper {
    stop: oneshot::Sender<()>,
    scrapes: JoinHandle<Vec<Scrape>>,
}

impl Scraper {
    pub fn start(client: Arc<Client>, url: String, interval: Duration) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let start = Instant::now();
        let scrapes = tokio::spawn(async move {
            let mut scrapes = Vec::new();
            let mut ticks = tokio::time::interval(interval);
            // A slow answer is not made up for by asking faster.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    _ = &mut stopped => return scrapes,
                }
                let asked = start.elapsed();
                // A server without metrics is measured without them; one under load may fail once.
                let Some(text) = client.get(&url).await else { continue };
                let answered = start.elapsed();
                let took = (answered - asked).as_secs_f64();
                scrapes.push(Scrape { took, ..read(&text, answered.as_secs_f64()) });
            }
        });
        Self { stop, scrapes }
    }

    pub async fn stop(self) -> Vec<Scrape> {
        let _ = self.stop.send(());
        self.scrapes.await.unwrap_or_default()
    }
}

fn read(text: &str, at: f64) -> Scrape {
    let mut scrape = Scrape { at, ..Scrape::default() };
    for sample in parse(text).into_iter().filter(|sample| sample.value.is_finite()) {
        match sample.name.as_str() {
            "vllm:num_requests_running" => scrape.running += sample.value,
            "vllm:num_requests_waiting" => scrape.waiting += sample.value,
            "vllm:kv_cache_usage_perc" => scrape.kv_usage = scrape.kv_usage.max(sample.value),
            "vllm:num_preemptions_total" => scrape.preemptions += sample.value,
            "keepwell_kv_bytes" if sample.label("state") == Some("live") => {
                let tier = sample.label("tier").unwrap_or("all").to_owned();
                *scrape.kv_bytes.entry(tier).or_default() += sample.value;
            }
            _ => {}
        }
    }
    scrape
}

#[cfg(test)]
mod tests {
    use keepwell_kernels::TIERS;

    use super::super::client::Endpoint;
    use super::super::stub::{Pace, start};
    use super::*;

    async fn scrapes(path: &str) -> Vec<Scrape> {
        let url = format!("http://{}", start(Pace::default()).unwrap());
        let client = Client::new(&url, Endpoint::Chat, None).unwrap();
        let every = Duration::from_millis(10);
        let scraper = Scraper::start(Arc::new(client), format!("{url}{path}"), every);
        tokio::time::sleep(Duration::from_millis(500)).await;
        scraper.stop().await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_server_says_is_read_again_and_again() {
        let scrapes = scrapes("/metrics").await;
        assert!(scrapes.len() > 1 && scrapes.is_sorted_by(|a, b| a.at < b.at), "{scrapes:?}");
        let last = scrapes.last().unwrap();
        assert_eq!((last.running, last.live_bytes()), (1.0, TIERS.len() as f64));
        assert!(last.took > 0.0 && last.took <= last.at);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_scrape_that_fails_does_not_end_the_others() {
        assert!(scrapes("/metrics/flaky").await.len() > 1);
        assert_eq!(scrapes("/none").await, []);
    }

    #[test]
    fn free_pages_are_not_held_and_engines_add_up() {
        let text = "vllm:num_requests_running{engine=\"0\"} 2\nvllm:num_requests_running{engine=\"1\"} 3\n\
                    keepwell_kv_bytes{state=\"free\",tier=\"none\"} 500\n\
                    keepwell_kv_bytes{state=\"cached\",tier=\"none\"} 400\n\
                    keepwell_kv_bytes{state=\"live\",tier=\"f16\"} 60\n\
                    keepwell_kv_bytes{state=\"live\",tier=\"k4v4\"} 40\nvllm:num_requests_waiting NaN\n";
        let scrape = read(text, 1.5);
        assert_eq!((scrape.running, scrape.waiting, scrape.at), (5.0, 0.0, 1.5));
        assert_eq!((scrape.live_bytes(), scrape.kv_bytes["k4v4"]), (100.0, 40.0));
    }
}
