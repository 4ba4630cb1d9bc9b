//! `keepwell-bench soak`: a mixed load for a long time, after which nothing may be lost, nothing wrong,
//! and no more memory taken than at its start.

mod ask;
mod memory;
mod mix;
mod reference;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::ask::Server;
use self::memory::Memory;
use self::mix::{KINDS, Kind};
use self::reference::Reference;

/// How long the server may take to be at rest after its last request.
const PATIENCE: Duration = Duration::from_secs(30);
const SHOWN_FAULTS: usize = 10;

#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The server, which nobody else may ask meanwhile
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    url: String,
    /// Bearer token
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Seconds of load
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(10..))]
    time: u64,
    /// Seconds of the same load before them, in which memory may grow: buffers reach their size
    #[arg(long, default_value_t = 60)]
    warm_up: u64,
    /// Clients at a time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: u32,
    /// Growth of the resident memory, apart from the arena, that is allowed over the time, in percent
    #[arg(long, default_value_t = 5.0)]
    max_growth: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What became of the requests of each kind.
#[derive(Default)]
struct Tally {
    num_asked: BTreeMap<&'static str, usize>,
    faults: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        for (kind, num) in other.num_asked {
            *self.num_asked.entry(kind).or_default() += num;
        }
        self.faults.extend(other.faults);
    }
}

#[derive(Clone, Copy)]
enum Phase {
    WarmUp,
    Watched,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(soak(arguments))
}

async fn soak(arguments: &Arguments) -> Result<()> {
    let server = Arc::new(Server::new(&arguments.url, arguments.api_key.clone())?);
    let reference = Arc::new(Reference::record(&server).await?);
    println!("{} answers recorded, each alone, greedy and without ties", reference.len());
    let mut tally = Tally::default();
    tally.add(load(arguments, Phase::WarmUp, &server, &reference).await?);
    let memory = Memory::watch(server.clone());
    tally.add(load(arguments, Phase::Watched, &server, &reference).await?);
    let at_rest = at_rest(&server).await;
    let again = reference.check(&server).await;
    let memory = memory.end().await;
    for (kind, num) in &tally.num_asked {
        println!("{num:>8} {kind}");
    }
    let growth = memory.growth().context("the server tells nothing of its memory")?;
    println!("resident memory apart from the arena {memory}: {growth:+.1} % after the warm-up");
    for fault in tally.faults.iter().take(SHOWN_FAULTS) {
        println!("WRONG {fault}");
    }
    ensure!(tally.faults.is_empty(), "{} answers were wrong", tally.faults.len());
    at_rest?;
    again.context("after the load")?;
    ensure!(growth <= arguments.max_growth, "resident memory grew by {growth:.1} %");
    println!("no page is lost, no answer was wrong");
    Ok(())
}

/// Clients that ask one request after the other, of random kinds, until the phase's time is up.
async fn load(
    arguments: &Arguments,
    phase: Phase,
    server: &Arc<Server>,
    reference: &Arc<Reference>,
) -> Result<Tally> {
    let seconds = match phase {
        Phase::WarmUp => arguments.warm_up,
        Phase::Watched => arguments.time,
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut clients = JoinSet::new();
    for nth in 0..arguments.clients {
        let stream = (phase as u64) << 16 | u64::from(nth);
        let mut rng = StdRng::seed_from_u64(arguments.seed << 32 | stream);
        let (server, reference) = (server.clone(), reference.clone());
        clients.spawn(async move {
            let mut tally = Tally::default();
            while Instant::now() < end {
                let kind = draw(&mut rng);
                *tally.num_asked.entry(kind.name).or_default() += 1;
                if let Err(fault) = mix::ask(kind, &server, &reference, &mut rng).await {
                    tally.faults.push(format!("{}: {fault:#}", kind.name));
                }
            }
            tally
        });
    }
    let mut sum = Tally::default();
    while let Some(tally) = clients.join_next().await {
        sum.add(tally?);
    }
    Ok(sum)
}

fn draw(rng: &mut StdRng) -> &'static Kind {
    let total: u32 = KINDS.iter().map(|kind| kind.weight).sum();
    let mut left = rng.random_range(0..total);
    for kind in KINDS {
        match left.checked_sub(kind.weight) {
            Some(rest) => left = rest,
            None => return kind,
        }
    }
    &KINDS[0]
}

/// Waits until nothing runs and no page is held.
async fn at_rest(server: &Server) -> Result<()> {
    let started = Instant::now();
    loop {
        let held = server.held().await?;
        if held == 0.0 {
            return Ok(());
        }
        ensure!(started.elapsed() < PATIENCE, "{held} pages and sequences are still held");
        sleep(Duration::from_millis(100)).await;
    }
}
