//! Prefill and decode rates, as llama-bench reports them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use keepwell_kernels::{
    ActivationBits, Backend, Choice, available, keeping, open, portable::Portable,
};
use keepwell_models::{LoadOptions, Model, TextTokenizer, WeightFormat, load};
use keepwell_server::{
    calibrate::{Calibration, CalibrationText, obtain},
    compress::{PolicyId, Protection},
    engine::{
        Engine, EngineHandle, EngineOptions, Event, GenerateRequest, Generation, KvCacheParams,
        OnPanic, SamplingParams,
    },
    metrics::latency::Stopwatch,
    sched::{SchedulerLimits, UserId},
    threads::ThreadArgs,
    trial::{Lab, Recipe},
};

use crate::{
    bandwidth, baseline,
    divergence::Reference,
    report::{Case, Row, Sample, reset_peak_rss},
    watch::Watched,
};

/// Tokens of a text that are read, and of those that follow, which are predicted.
const KL_CONTEXT: usize = 512;
const KL_FORCED: usize = 128;
/// Tokens of a step, over all sequences: llama.cpp's default too.
const STEP_TOKENS: usize = 512;

#[derive(clap::Args)]
pub struct Arguments {
    /// A folder, a GGUF file, a hub id or `smollm2`.
    #[arg(long, default_value = "smollm2")]
    pub model: String,
    /// Prompt tokens of each sequence whose prefill is measured; 0 leaves the test out.
    #[arg(long, default_value_t = 512)]
    pub prompt: usize,
    /// Generated tokens of each sequence that are measured; 0 leaves the test out.
    #[arg(long = "gen", default_value_t = 64)]
    pub generated: usize,
    /// Tokens of each sequence before those that are measured.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    pub depth: Vec<usize>,
    /// Sequences at once.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    batch: Vec<usize>,
    #[arg(long, value_delimiter = ',', default_value = "1.0")]
    kv_budget: Vec<f32>,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Repetitions, after one that is not counted.
    #[arg(long, default_value_t = 3)]
    pub repetitions: usize,
    /// What computes: `auto` is the first CUDA device, or the CPU where there is none.
    #[arg(long, value_name = "auto|cpu|cuda:N", default_value = "auto")]
    device: Choice,
    /// A backend by name (`portable`, `avx2`), where not the fastest of the device is meant.
    #[arg(long, conflicts_with = "device")]
    backend: Option<String>,
    /// Bits that activations keep where they meet quantized weights.
    #[arg(long, value_name = "8|16", default_value = "16")]
    activation_bits: ActivationBits,
    /// Text to calibrate the KV cache on: `auto` is built in, `off` does without, else a file.
    #[arg(
        long,
        env = "KEEPWELL_CALIBRATION",
        value_name = "auto|off|FILE",
        default_value = "auto"
    )]
    calibration: CalibrationText,
    /// Measure `candle_transformers`' quantized llama instead: one sequence, GGUF only.
    #[arg(long, value_parser = ["candle"])]
    baseline: Option<String>,
    /// Running text: each row gets the divergence of its predictions from those of weights and kernels in
    /// f32 with an exact cache, over the end of this text's first 640 tokens.
    #[arg(long, value_name = "FILE", conflicts_with = "baseline")]
    kl: Option<PathBuf>,
    /// Write the rows here as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.repetitions > 0, "--repetitions must be at least 1");
    ensure!(arguments.batch.iter().all(|b| *b > 0), "--batch must be at least 1");
    arguments.threads.start()?;
    let rows = match arguments.baseline {
        Some(_) => baseline::run(arguments, host_bandwidth())?,
        None => measure_engine(arguments)?,
    };
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&rows)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The backend of that name, or else the fastest on the device.
pub fn backend(device: Choice, name: Option<&str>) -> Result<Box<dyn Backend>> {
    let Some(name) = name else {
        return Ok(open(device)?);
    };
    let found = available().into_iter().find(|backend| backend.name() == name);
    found.ok_or_else(|| anyhow!("this machine cannot run a backend {name}"))
}

/// Bytes per second that a case is measured against. Prints it, and the head of the table.
fn host_bandwidth() -> f64 {
    let (bandwidth, threads) = (bandwidth::measure(), rayon::current_num_threads());
    println!("reading memory: {:.1} GB/s with {threads} threads", bandwidth / 1e9);
    Row::print_head();
    bandwidth
}

/// The same of a device.
fn device_bandwidth(backend: &dyn Backend) -> Result<f64> {
    let bandwidth = bandwidth::measure_device(backend)?;
    println!("adding on {}: {:.1} GB/s", backend.name(), bandwidth / 1e9);
    Row::print_head();
    Ok(bandwidth)
}

fn measure_engine(arguments: &Arguments) -> Result<Vec<Row>> {
    let text = arguments.calibration.read()?;
    let backend = backend(arguments.device, arguments.backend.as_deref())?;
    let backend: Arc<dyn Backend> = keeping(backend, arguments.activation_bits)?.into();
    let bandwidth = match backend.has_own_memory() {
        true => device_bandwidth(&*backend)?,
        false => host_bandwidth(),
    };
    let loaded = load(&arguments.model, &LoadOptions::default(), backend.clone())?;
    let calibration = obtain(text.as_deref(), &loaded, &*backend).calibration;
    let lab = Lab::new(&*loaded.model, &*backend, STEP_TOKENS, Protection::default());
    let kls = match &arguments.kl {
        Some(text) => kls(arguments, text, &loaded.tokenizer, lab.calibrated(&calibration))?,
        None => Vec::new(),
    };
    let model = Watched::new(loaded.model);
    let mut rows = Vec::new();
    for case in cases(arguments, backend.name()) {
        reset_peak_rss();
        let kl = kls.iter().find(|(budget, _)| *budget == case.kv_budget).map(|(_, kl)| *kl);
        let samples = measure(&model, &backend, &calibration, &case, arguments.repetitions)?;
        rows.push(Row { kl_to_f32: kl, ..Row::new(case, &samples, bandwidth) });
        rows.iter().last().inspect(|row| row.print());
    }
    Ok(rows)
}

/// Mean divergence from f32, for each budget.
fn kls(
    arguments: &Arguments,
    text: &Path,
    tokenizer: &TextTokenizer,
    lab: Lab,
) -> Result<Vec<(f32, f64)>> {
    let tokens = kl_tokens(text, tokenizer)?;
    let (context, forced) = tokens.split_at(KL_CONTEXT);
    let predict = |lab: Lab, budget: f32| {
        let mut trial = lab.start(Recipe { budget, ..Recipe::exact() }, tokens.len())?;
        trial.prefill(context)?;
        trial.force(&forced[..KL_FORCED])
    };
    let reference = {
        let portable: Arc<dyn Backend> = Arc::new(Portable);
        let options = LoadOptions { weights: WeightFormat::F32, ..LoadOptions::default() };
        let exact = load(&arguments.model, &options, portable.clone())?.model;
        let lab = Lab::new(&*exact, &*portable, STEP_TOKENS, Protection::default());
        Reference::new(&predict(lab, 1.0)?)
    };
    let kl = |&budget: &f32| {
        let kls = reference.compare(&predict(lab, budget)?, &forced[1..]).kls;
        Ok((budget, kls.iter().sum::<f64>() / kls.len() as f64))
    };
    arguments.kv_budget.iter().map(kl).collect()
}

fn kl_tokens(text: &Path, tokenizer: &TextTokenizer) -> Result<Vec<u32>> {
    let content =
        std::fs::read_to_string(text).with_context(|| format!("cannot read {}", text.display()))?;
    let mut tokens = tokenizer.encode(&content, false)?;
    let len = KL_CONTEXT + KL_FORCED + 1;
    ensure!(tokens.len() >= len, "{} has {} tokens of {len}", text.display(), tokens.len());
    tokens.truncate(len);
    Ok(tokens)
}

fn cases(arguments: &Arguments, backend: &str) -> Vec<Case> {
    let tests = [("prefill", arguments.prompt), ("decode", arguments.generated)];
    let mut cases = Vec::new();
    for &depth in &arguments.depth {
        for &batch in &arguments.batch {
            for &kv_budget in &arguments.kv_budget {
                for (test, tokens) in tests.into_iter().filter(|(_, tokens)| *tokens > 0) {
                    let (model, backend) = (arguments.model.clone(), backend.to_owned());
                    cases.push(Case { test, tokens, depth, batch, kv_budget, model, backend });
                }
            }
        }
    }
    cases
}

/// Runs a case in an engine of its own, so that its memory is its own.
fn measure(
    model: &Watched,
    backend: &Arc<dyn Backend>,
    calibration: &Calibration,
    case: &Case,
    repetitions: usize,
) -> Result<Vec<Sample>> {
    let engine = spawn(model, backend, calibration, case)?;
    let samples =
        (0..=repetitions).map(|_| sample(model, &engine, case)).collect::<Result<Vec<_>>>()?;
    engine.shutdown();
    Ok(samples[1..].to_vec())
}

/// An engine with room for the case and little more.
pub fn spawn(
    model: &Watched,
    backend: &Arc<dyn Backend>,
    calibration: &Calibration,
    case: &Case,
) -> Result<EngineHandle> {
    let config = model.config();
    let token_bytes = config.num_layers * config.num_kv_heads * config.head_dim * 4;
    let len = (case.depth + case.tokens + 2).next_multiple_of(8);
    let limits = SchedulerLimits {
        max_step_tokens: STEP_TOKENS,
        max_running: case.batch,
        max_waiting: case.batch,
        max_waiting_tokens: usize::MAX,
    };
    // An eighth for page metadata and slack.
    let kv_memory = case.batch * len * token_bytes / 8 * 9 + (64 << 20);
    let (protection, calibration) = (Protection::default(), calibration.clone());
    let on_panic = OnPanic::default();
    let options =
        EngineOptions { kv_memory, limits, protection, calibration, on_panic, prefix_cache: false };
    Ok(Engine::spawn(Box::new(model.clone()), backend.clone(), options)?.0)
}

/// One repetition of the case.
pub fn sample(model: &Watched, engine: &EngineHandle, case: &Case) -> Result<Sample> {
    let Case { tokens, depth, batch, .. } = *case;
    // A prompt of the depth and the tokens that are measured; or of the depth, after which its first
    // token is drawn, whose step is the first that is measured.
    let (prompt, generated) = match case.test {
        "prefill" => (depth + tokens, 1),
        _ => (depth.max(1), tokens + 1),
    };
    model.restart();
    let generations = (0..batch)
        .map(|index| Ok(engine.generate(request(prompt, generated, index, case.kv_budget))?))
        .collect::<Result<Vec<_>>>()?;
    generations.into_iter().try_for_each(finish)?;
    let end = Instant::now();
    Ok(match case.test {
        "prefill" => model.prefill(depth..prompt, end),
        _ => model.decode(prompt, batch, end),
    })
}

fn request(prompt: usize, generated: usize, index: usize, budget: f32) -> GenerateRequest {
    GenerateRequest {
        prompt: tokens(prompt, index),
        max_tokens: generated,
        may_shorten: false,
        stop_token_ids: vec![],
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        kv_cache: KvCacheParams { budget, min_budget: budget, policy: PolicyId::default() },
        priority: 0,
        user: UserId::ANONYMOUS,
        constraint: None,
        marked: Default::default(),
        pooling: None,
        cache_salt: None,
    }
}

/// Any tokens do: the work does not depend on them.
pub fn tokens(len: usize, index: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 31 + index * 7) % 30_000 + 100) as u32).collect()
}

/// Reads all that comes, and notes the time of every token as the API does.
fn finish(mut generation: Generation) -> Result<()> {
    let mut stopwatch = Stopwatch::start();
    loop {
        match generation.blocking_next() {
            Some(Event::Token(_)) => stopwatch.token(),
            Some(Event::PromptLogprobs(_) | Event::Embedding(_)) => {}
            Some(Event::Finished(_)) => return Ok(()),
            other => bail!("the generation broke off: {other:?}"),
        }
    }
}
