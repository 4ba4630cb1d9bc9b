//! A sign of life that other threads can read.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Heartbeat(Arc<Inner>);

struct Inner {
    started: Instant,
    /// Milliseconds from `started` to the last beat, plus one; 0 while there is nothing to do.
    last: AtomicU64,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self(Arc::new(Inner { started: Instant::now(), last: AtomicU64::new(0) }))
    }
}

impl Heartbeat {
    /// Work goes on.
    pub fn beat(&self) {
        self.0.last.store(self.now() + 1, Ordering::Relaxed);
    }

    /// There is nothing to do.
    pub fn rest(&self) {
        self.0.last.store(0, Ordering::Relaxed);
    }

    /// Time since the last beat; `None` at rest.
    pub fn busy_since(&self) -> Option<Duration> {
        let last = self.0.last.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(self.now().saturating_sub(last)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_since_the_last_beat_grows_until_there_is_nothing_to_do() {
        let heart = Heartbeat::default();
        assert_eq!(heart.busy_since(), None);
        heart.beat();
        std::thread::sleep(Duration::from_millis(20));
        assert!(heart.clone().busy_since() >= Some(Duration::from_millis(15)));
        // A busy machine may stop us between the two: not each time.
        let is_reset = |_| {
            heart.beat();
            heart.busy_since() < Some(Duration::from_millis(15))
        };
        assert!((0..1000).any(is_reset));
        heart.rest();
        assert_eq!(heart.busy_since(), None);
    }
}
