//! The threads that compute: one pool for the whole process.

use anyhow::{Result, bail};
use clap::{Args, builder::BoolishValueParser, value_parser};
use core_affinity::CoreId;
use rayon::ThreadPoolBuilder;
use tracing::warn;

/// How many they are, and where they run.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct ThreadArgs {
    /// Threads that compute [default: one per core]
    #[arg(
        long,
        env = "KEEPWELL_THREADS",
        value_parser = value_parser!(u32).range(1..=4096)
    )]
    pub threads: Option<u32>,

    /// Keep each thread that computes on a core of its own: for a machine that does nothing else
    #[arg(
        long,
        env = "KEEPWELL_PIN_THREADS",
        value_parser = BoolishValueParser::new()
    )]
    pub pin_threads: bool,
}

impl ThreadArgs {
    /// Starts the pool of rayon with them; without wishes it starts by itself when it is needed.
    ///
    /// # Errors
    /// The pool runs already, or there are more threads to pin than cores this process may use.
    pub fn start(self) -> Result<()> {
        let builder = match (self.threads, self.pin_threads) {
            (None, false) => return Ok(()),
            (Some(threads), false) => ThreadPoolBuilder::new().num_threads(threads as usize),
            (threads, true) => pinned(cores(threads)?),
        };
        Ok(builder.build_global()?)
    }
}

/// A thread on each of the cores.
fn pinned(cores: Vec<CoreId>) -> ThreadPoolBuilder {
    ThreadPoolBuilder::new().num_threads(cores.len()).start_handler(move |index| {
        if !core_affinity::set_for_current(cores[index]) {
            warn!("thread {index} could not be pinned to a core");
        }
    })
}

/// A core for each thread, of those that the process may use.
fn cores(threads: Option<u32>) -> Result<Vec<CoreId>> {
    let mut cores = core_affinity::get_core_ids().unwrap_or_default();
    let threads = threads.map_or(cores.len(), |threads| threads as usize);
    if threads == 0 || threads > cores.len() {
        bail!("--pin-threads: {threads} threads, but {} cores to pin them to", cores.len());
    }
    cores.truncate(threads);
    Ok(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_a_core_of_its_own() {
        let all = cores(None).unwrap();
        assert!(!all.is_empty());
        assert_eq!(cores(Some(1)).unwrap(), all[..1]);
    }

    #[test]
    fn a_pinned_thread_may_run_on_its_core_only() {
        let cores = cores(None).unwrap();
        let pool = pinned(cores.clone()).build().unwrap();
        let allowed = pool.broadcast(|_| core_affinity::get_core_ids().unwrap());
        assert_eq!(allowed, cores.into_iter().map(|core| vec![core]).collect::<Vec<_>>());
    }

    #[test]
    fn more_threads_than_cores_cannot_be_pinned() {
        let error = cores(Some(4096)).unwrap_err().to_string();
        assert!(error.contains("4096 threads"), "{error}");
    }
}
