//! Requests in flight at a fixed arena, and what scheduling takes of a step.

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use bytesize::ByteSize;
use keepwell_kernels::{Backend, available};
use keepwell_models::{LoadOptions, Model, load};
use keepwell_server::{
    calibrate::{Calibration, CalibrationText, obtain},
    compress::{PolicyId, Protection},
    engine::{
        Engine, EngineHandle, EngineOptions, Event, GenerateRequest, Generation, KvCacheParams,
        KvUsage, OnPanic, SamplingParams, Snapshot,
    },
    metrics::{parse::parse, recorder, table::STEP_TIME},
    sched::{SchedulerLimits, UserId},
};

use crate::{engine::tokens, watch::Watched};

/// The engine's gauges are ten times as old at most.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Sequences of the steps whose scheduling is measured, and their tokens.
const STEP_SEQUENCES: usize = 64;
const STEP_PROMPT: usize = 16;
const STEP_GENERATED: usize = 160;

#[derive(clap::Args)]
pub struct Arguments {
    /// A folder, a GGUF file, a hub id or `smollm2`
    #[arg(long, default_value = "smollm2")]
    model: String,
    /// The arena
    #[arg(long, default_value = "128MiB")]
    kv_memory: ByteSize,
    /// What all requests together need in F16, in arenas
    #[arg(long, default_value_t = 3.0)]
    arenas: f64,
    /// Prompt tokens of a request
    #[arg(long, default_value_t = 700)]
    prompt: usize,
    /// Generated tokens of a request
    #[arg(long = "gen", default_value_t = 100)]
    generated: usize,
    /// The floor of the run that may be squeezed
    #[arg(long, default_value_t = 0.2)]
    min_budget: f32,
    /// Tokens of a step
    #[arg(long, default_value_t = 256)]
    max_batch_tokens: usize,
    /// Text to calibrate the KV cache on: `auto` is built in, `off` does without, else a file
    #[arg(
        long,
        env = "KEEPWELL_CALIBRATION",
        value_name = "auto|off|FILE",
        default_value = "auto"
    )]
    calibration: CalibrationText,
}

/// What all runs share.
struct Bench {
    model: Watched,
    backend: Arc<dyn Backend>,
    calibration: Calibration,
    max_step_tokens: usize,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let recorder = recorder(&arguments.model)?.install_recorder()?;
    let text = arguments.calibration.read()?;
    let backend: Arc<dyn Backend> = available().remove(0).into();
    let loaded = load(&arguments.model, &LoadOptions::default(), backend.clone())?;
    let calibration = obtain(text.as_deref(), &loaded, &*backend).calibration;
    let bench = Bench {
        model: Watched::new(loaded.model),
        backend,
        calibration,
        max_step_tokens: arguments.max_batch_tokens,
    };
    let requests = bench.requests(arguments)?;
    println!(
        "{requests} requests of {} + {} tokens, {} times the arena of {} in F16",
        arguments.prompt, arguments.generated, arguments.arenas, arguments.kv_memory
    );
    let kv_memory = usize::try_from(arguments.kv_memory.as_u64())?;
    let ask = |nth, kv_cache| request(nth, arguments.prompt, arguments.generated, kv_cache);
    println!("{HEAD}");
    let floors = [("off", 1.0), ("down to the floor", arguments.min_budget)];
    for (name, min_budget) in floors {
        let kv_cache = KvCacheParams { budget: 1.0, min_budget, policy: PolicyId::default() };
        let asked = (0..requests).map(|nth| ask(nth, kv_cache)).collect();
        bench.measure(kv_memory, asked)?.print(name);
    }
    let kv_cache = KvCacheParams { budget: 1.0, min_budget: 1.0, policy: PolicyId::default() };
    let before = stages(&recorder.render());
    let asked = (0..STEP_SEQUENCES)
        .map(|nth| request(nth, STEP_PROMPT, STEP_GENERATED, kv_cache))
        .collect();
    bench.measure(1 << 30, asked)?;
    print_steps(&before, &stages(&recorder.render()));
    Ok(())
}

impl Bench {
    fn f16_token_bytes(&self) -> usize {
        let config = self.model.config();
        config.num_layers * config.num_kv_heads * config.head_dim * 4
    }

    /// How many requests need that many arenas.
    fn requests(&self, arguments: &Arguments) -> Result<usize> {
        let bytes = (arguments.prompt + arguments.generated) * self.f16_token_bytes();
        let requests = arguments.arenas * arguments.kv_memory.as_u64() as f64 / bytes as f64;
        ensure!(arguments.generated > 0 && arguments.prompt > 0, "--prompt and --gen are above 0");
        ensure!((1.0..1e5).contains(&requests), "that is {requests:.1} requests");
        Ok(requests.ceil() as usize)
    }

    /// Hands all requests over at once and watches them end.
    fn measure(&self, kv_memory: usize, requests: Vec<GenerateRequest>) -> Result<Measured> {
        let limits = SchedulerLimits {
            max_step_tokens: self.max_step_tokens,
            max_running: STEP_SEQUENCES,
            max_waiting: requests.len(),
            max_waiting_tokens: usize::MAX,
        };
        let (protection, calibration) = (Protection::default(), self.calibration.clone());
        let on_panic = OnPanic::default();
        let options = EngineOptions {
            kv_memory,
            limits,
            protection,
            calibration,
            on_panic,
            prefix_cache: false,
        };
        let (engine, _) =
            Engine::spawn(Box::new(self.model.clone()), self.backend.clone(), options)?;
        let started = Instant::now();
        let asked = requests.into_iter().map(|request| engine.generate(request));
        let asked = asked.collect::<Result<Vec<_>, _>>()?;
        let waited =
            thread::spawn(move || asked.into_iter().map(finish).collect::<Result<Vec<_>>>());
        let snapshots = watch(&engine, || waited.is_finished());
        let elapsed = started.elapsed();
        let usages = waited.join().expect("a thread that only waits")?;
        let num_preemptions = engine.snapshot().num_preemptions;
        engine.shutdown();
        Ok(Measured { elapsed, snapshots, usages, num_preemptions })
    }
}

/// What one run gave.
struct Measured {
    elapsed: Duration,
    snapshots: Vec<Arc<Snapshot>>,
    usages: Vec<KvUsage>,
    num_preemptions: usize,
}

const HEAD: &str = "\
| squeezed | in flight, most | mean | waiting, mean | preempted | seconds | finished | lowest budget, least | mean |
|---|---|---|---|---|---|---|---|---|";

impl Measured {
    fn print(&self, name: &str) {
        let mean = |of: &dyn Fn(&Snapshot) -> usize| {
            let sum: usize = self.snapshots.iter().map(|snapshot| of(snapshot)).sum();
            sum as f64 / self.snapshots.len().max(1) as f64
        };
        let most = self.snapshots.iter().map(|snapshot| snapshot.num_running()).max();
        let budgets = self.usages.iter().map(|usage| usage.lowest_budget);
        println!(
            "| {name} | {} | {:.1} | {:.1} | {} | {:.1} | {} | {:.2} | {:.2} |",
            most.unwrap_or(0),
            mean(&Snapshot::num_running),
            mean(&|snapshot| snapshot.sequences.len() - snapshot.num_running()),
            self.num_preemptions,
            self.elapsed.as_secs_f64(),
            self.usages.len(),
            budgets.clone().fold(1.0, f32::min),
            budgets.sum::<f32>() / self.usages.len() as f32,
        );
    }
}

/// What the engine told, again and again until it is done.
fn watch(engine: &EngineHandle, is_done: impl Fn() -> bool) -> Vec<Arc<Snapshot>> {
    let mut snapshots = Vec::new();
    while !is_done() {
        snapshots.push(engine.snapshot());
        thread::sleep(POLL_INTERVAL);
    }
    snapshots
}

fn request(
    nth: usize,
    prompt: usize,
    generated: usize,
    kv_cache: KvCacheParams,
) -> GenerateRequest {
    GenerateRequest {
        prompt: tokens(prompt, nth),
        max_tokens: generated,
        may_shorten: false,
        stop_token_ids: vec![],
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        kv_cache,
        priority: 0,
        user: UserId::ANONYMOUS,
        constraint: None,
        marked: Default::default(),
        pooling: None,
        cache_salt: None,
    }
}

fn finish(mut generation: Generation) -> Result<KvUsage> {
    loop {
        match generation.blocking_next() {
            Some(Event::Token(_) | Event::PromptLogprobs(_) | Event::Embedding(_)) => {}
            Some(Event::Finished(outcome)) => return Ok(outcome.kv_cache),
            other => bail!("a generation broke off: {other:?}"),
        }
    }
}

/// Seconds and steps so far, by stage.
type Stages = BTreeMap<String, (f64, f64)>;

fn stages(scrape: &str) -> Stages {
    let mut stages = Stages::new();
    for sample in parse(scrape) {
        let Some(stage) = sample.label("stage") else { continue };
        let spent = stages.entry(stage.to_owned()).or_default();
        match sample.name.strip_prefix(STEP_TIME.name) {
            Some("_sum") => spent.0 += sample.value,
            Some("_count") => spent.1 += sample.value,
            _ => {}
        }
    }
    stages
}

fn print_steps(before: &Stages, after: &Stages) {
    let spent = |stage: &str| {
        let (from, to) = (before.get(stage).copied().unwrap_or_default(), after[stage]);
        (to.0 - from.0, to.1 - from.1)
    };
    let names = ["schedule", "gather", "forward", "sample", "compress"];
    let total: f64 = names.iter().map(|name| spent(name).0).sum();
    let num_steps = spent("schedule").1;
    println!(
        "\n{num_steps} steps of {STEP_SEQUENCES} sequences, {:.2} ms each:",
        1e3 * total / num_steps
    );
    for name in names {
        let (seconds, _) = spent(name);
        println!(
            "{name:>9} {:7.3} ms {:5.2} %",
            1e3 * seconds / num_steps,
            100.0 * seconds / total
        );
    }
}
