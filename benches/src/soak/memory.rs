//! The server's resident memory over time, apart from the arena: its pages become resident as they are
//! first used, up to a bound that is known.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use keepwell_server::metrics::parse::Sample;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::ask::Server;

const INTERVAL: Duration = Duration::from_millis(500);

/// Watches until told to end.
pub struct Memory {
    end: oneshot::Sender<()>,
    watching: JoinHandle<Readings>,
}

/// Bytes, one reading after the other.
pub struct Readings(Vec<f64>);

impl Memory {
    pub fn watch(server: Arc<Server>) -> Self {
        let (end, mut ended) = oneshot::channel();
        let watching = tokio::spawn(async move {
            let mut readings = vec![];
            let mut ticks = tokio::time::interval(INTERVAL);
            loop {
                tokio::select! {
                    _ = ticks.tick() => readings.extend(resident(&server).await),
                    _ = &mut ended => return Readings(readings),
                }
            }
        });
        Self { end, watching }
    }

    pub async fn end(self) -> Readings {
        // It may have ended by itself.
        let _ = self.end.send(());
        self.watching.await.unwrap_or(Readings(vec![]))
    }
}

async fn resident(server: &Server) -> Option<f64> {
    let metrics = server.metrics().await.ok()?;
    let all = metrics.iter().find(|sample| sample.name == "process_resident_memory_bytes")?;
    let is_arena = |sample: &&Sample| {
        sample.name == "keepwell_memory_bytes" && sample.label("component") == Some("kv_cache")
    };
    Some(all.value - metrics.iter().find(is_arena)?.value)
}

impl Readings {
    /// Percent by which the last quarter is above the first one; medians of both.
    pub fn growth(&self) -> Option<f64> {
        let quarter = (self.0.len() / 4).max(1);
        let first = median(self.0.get(..quarter)?)?;
        let last = median(self.0.get(self.0.len() - quarter..)?)?;
        Some(100.0 * (last / first - 1.0))
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

impl fmt::Display for Readings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: f64| ByteSize(bytes as u64).display().iec();
        let most = self.0.iter().copied().fold(0.0, f64::max);
        let (first, last) = (self.0.first().copied(), self.0.last().copied());
        let (first, last) = (size(first.unwrap_or(0.0)), size(last.unwrap_or(0.0)));
        write!(f, "{first} at the start, {} at most, {last} at the end", size(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_apart_from_outliers() {
        let mut flat = vec![100.0; 75];
        flat[5] = 900.0;
        assert_eq!(Readings(flat.clone()).growth(), Some(0.0));
        let leak = flat.iter().zip(0..).map(|(x, nth)| x + f64::from(nth)).collect();
        assert!(Readings(leak).growth().unwrap() > 40.0);
        assert_eq!(Readings(vec![]).growth(), None);
    }
}
