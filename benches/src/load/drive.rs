//! Puts the load of one stage on the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::arrivals::{Load, poisson, trace};
use super::client::{Client, Endpoint};
use super::record::Record;
use super::workload::{Workload, message};

/// One stage of a run.
#[derive(Clone, Debug)]
pub struct Stage {
    pub load: Load,
    /// Sessions to begin, unless the time is up before.
    pub num_sessions: usize,
    /// No session begins later.
    pub time: Option<Duration>,
    /// The number of the first session. Those of stages differ, or a prefix cache would be
    /// measured; only a dataset that is too short is gone through again.
    pub first_session: usize,
}

/// What a session needs.
struct Driver {
    client: Arc<Client>,
    workload: Arc<Workload>,
    start: Instant,
    done: mpsc::UnboundedSender<Record>,
}

/// Runs the stage; every request's record goes to `done` as it ends. Returns when all have ended.
pub async fn run(
    client: Arc<Client>,
    workload: Arc<Workload>,
    stage: &Stage,
    done: mpsc::UnboundedSender<Record>,
) {
    let driver = Arc::new(Driver { client, workload, start: Instant::now(), done });
    match stage.load {
        Load::Concurrency(num) => closed(driver, stage, num).await,
        Load::Rate(rate) => {
            let seed = driver.workload.seed ^ stage.first_session as u64;
            open(driver, stage, &poisson(rate, stage.num_sessions, seed)).await;
        }
        Load::Trace => {
            let Stage { first_session, num_sessions, .. } = *stage;
            let times = trace(&driver.workload.dataset, first_session, num_sessions);
            open(driver, stage, &times).await;
        }
    }
}

async fn closed(driver: Arc<Driver>, stage: &Stage, num: usize) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..num.min(stage.num_sessions) {
        let (driver, next, stage) = (driver.clone(), next.clone(), stage.clone());
        workers.spawn(async move {
            loop {
                let nth = next.fetch_add(1, Ordering::Relaxed);
                let is_late = stage.time.is_some_and(|time| driver.start.elapsed() >= time);
                if nth >= stage.num_sessions || is_late {
                    return;
                }
                driver.session(stage.first_session + nth, None).await;
            }
        });
    }
    workers.join_all().await;
}

async fn open(driver: Arc<Driver>, stage: &Stage, times: &[f64]) {
    let mut sessions = JoinSet::new();
    for (nth, at) in times.iter().enumerate() {
        if stage.time.is_some_and(|time| *at >= time.as_secs_f64()) {
            break;
        }
        let due = driver.start + Duration::from_secs_f64(*at);
        sleep_until(due.into()).await;
        let (driver, index) = (driver.clone(), stage.first_session + nth);
        sessions.spawn(async move { driver.session(index, Some(due)).await });
        while sessions.try_join_next().is_some() {}
    }
    sessions.join_all().await;
}

impl Driver {
    /// Turn by turn; one that fails ends the session.
    async fn session(&self, index: usize, due: Option<Instant>) {
        let session = self.workload.session(index);
        let mut messages = session.history;
        let mut due = due;
        for turn in session.turns {
            messages.push(message("user", &turn.text));
            let mut record = self.client.ask(&messages, turn.max_tokens, self.start).await;
            if let Some(due) = due.take() {
                record.late = record.sent - (due - self.start).as_secs_f64();
            }
            let is_ok = record.is_ok();
            messages.push(message("assistant", &std::mem::take(&mut record.text)));
            // Nobody listens any more when the run was interrupted.
            if self.done.send(record).is_err() || !is_ok {
                return;
            }
        }
    }
}

/// How the endpoint is called in a report.
pub fn path(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Chat => "/v1/chat/completions",
        Endpoint::Completions => "/v1/completions",
    }
}
