//! Prefill and decode rates, as llama-bench reports them.

use std::{path::PathBuf, sync::Arc, time::Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use keepwell_kernels::{Backend, available};
use keepwell_models::{LoadOptions, load};
use keepwell_server::{
    calibrate::{CalibrationText, obtain},
    compress::{PolicyId, Protection},
    engine::{
        Engine, EngineHandle, EngineOptions, Event, GenerateRequest, Generation, KvCacheParams,
        SamplingParams,
    },
    sched::SchedulerLimits,
};

use crate::{
    baseline,
    report::{Row, Spread, peak_rss, print},
};

#[derive(clap::Args)]
pub struct Arguments {
    /// A folder, a GGUF file, a hub id or `smollm2`.
    #[arg(long, default_value = "smollm2")]
    model: String,
    /// Prompt tokens of each sequence.
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Generated tokens of each sequence.
    #[arg(long = "gen", default_value_t = 64)]
    generated: usize,
    /// Sequences at once.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    batch: Vec<usize>,
    #[arg(long, value_delimiter = ',', default_value = "1.0")]
    kv_budget: Vec<f32>,
    /// Repetitions, after one that is not counted.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// A backend by name; the fastest without.
    #[arg(long)]
    backend: Option<String>,
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
    /// Write the rows here as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        arguments.prompt > 0 && arguments.generated > 1 && arguments.repetitions > 0,
        "--prompt and --repetitions must be at least 1, --gen at least 2"
    );
    let rows = match arguments.baseline {
        Some(_) => {
            let path = keepwell_models::fetch(&arguments.model, &LoadOptions::default())?;
            baseline::run(&path, arguments.prompt, arguments.generated, arguments.repetitions)?
        }
        None => measure_engine(arguments)?,
    };
    print(&rows);
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&rows)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn backend(name: Option<&str>) -> Result<Arc<dyn Backend>> {
    let mut backends = available();
    let index = match name {
        None => 0,
        Some(name) => backends
            .iter()
            .position(|b| b.name() == name)
            .ok_or_else(|| anyhow!("this machine cannot run a backend {name}"))?,
    };
    Ok(backends.swap_remove(index).into())
}

fn measure_engine(arguments: &Arguments) -> Result<Vec<Row>> {
    let text = arguments.calibration.read()?;
    let backend = backend(arguments.backend.as_deref())?;
    let loaded = load(&arguments.model, &LoadOptions::default(), backend.clone())?;
    let config = loaded.model.config();
    let token_bytes = config.num_layers * config.num_kv_heads * config.head_dim * 4;
    let most = arguments.batch.iter().max().copied().unwrap_or(1);
    let len = (arguments.prompt + arguments.generated).next_multiple_of(8);
    let options = EngineOptions {
        // An eighth for page metadata and slack.
        kv_memory: (most + 1) * len * token_bytes / 8 * 9 + (64 << 20),
        limits: SchedulerLimits { max_step_tokens: 512, max_running: most, max_waiting: most },
        protection: Protection::default(),
        calibration: obtain(text.as_deref(), &loaded, &*backend),
    };
    let (engine, _) = Engine::spawn(loaded.model, backend.clone(), options)?;
    let mut rows = Vec::new();
    for &batch in &arguments.batch {
        for &kv_budget in &arguments.kv_budget {
            rows.extend(measure(&engine, backend.name(), arguments, batch, kv_budget)?);
        }
    }
    engine.shutdown();
    Ok(rows)
}

/// One repetition: seconds of prefill and of decode, and KV bytes held at the end.
struct Sample {
    prefill: f64,
    decode: f64,
    kv_bytes: usize,
}

fn measure(
    engine: &EngineHandle,
    backend: &str,
    arguments: &Arguments,
    batch: usize,
    kv_budget: f32,
) -> Result<[Row; 2]> {
    let samples = (0..=arguments.repetitions)
        .map(|_| sample(engine, arguments, batch, kv_budget))
        .skip(1)
        .collect::<Result<Vec<_>>>()?;
    let row = |test, tokens: usize, counted: usize, seconds: fn(&Sample) -> f64| Row {
        test,
        tokens,
        batch,
        kv_budget,
        backend: backend.into(),
        tokens_per_s: Spread::new(
            samples.iter().map(|s| (counted * batch) as f64 / seconds(s)).collect(),
        ),
        kv_bytes: samples.last().map_or(0, |s| s.kv_bytes),
        rss_bytes: peak_rss(),
    };
    let (prompt, generated) = (arguments.prompt, arguments.generated);
    Ok([
        row("prefill", prompt, prompt, |s| s.prefill),
        row("decode", generated, generated - 1, |s| s.decode),
    ])
}

/// Prefill ends when the last sequence has its first token; decode when the last one is done.
fn sample(
    engine: &EngineHandle,
    arguments: &Arguments,
    batch: usize,
    kv_budget: f32,
) -> Result<Sample> {
    let start = Instant::now();
    let mut generations = (0..batch)
        .map(|index| Ok(engine.generate(request(arguments, index, kv_budget))?))
        .collect::<Result<Vec<_>>>()?;
    for generation in &mut generations {
        first_token(generation)?;
    }
    let prefill = start.elapsed().as_secs_f64();
    let mut kv_bytes = 0;
    for generation in &mut generations {
        kv_bytes += finish(generation)?;
    }
    Ok(Sample { prefill, decode: start.elapsed().as_secs_f64() - prefill, kv_bytes })
}

fn request(arguments: &Arguments, index: usize, budget: f32) -> GenerateRequest {
    // Any tokens do: the work does not depend on them.
    let prompt = (0..arguments.prompt).map(|i| ((i * 31 + index * 7) % 30_000 + 100) as u32);
    GenerateRequest {
        prompt: prompt.collect(),
        max_tokens: arguments.generated,
        may_shorten: false,
        stop_token_ids: vec![],
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        kv_cache: KvCacheParams { budget, min_budget: budget, policy: PolicyId::default() },
    }
}

fn first_token(generation: &mut Generation) -> Result<()> {
    match generation.blocking_next() {
        Some(Event::Token(_)) => Ok(()),
        other => bail!("expected a token, got {other:?}"),
    }
}

fn finish(generation: &mut Generation) -> Result<usize> {
    loop {
        match generation.blocking_next() {
            Some(Event::Token(_)) => {}
            Some(Event::Finished(outcome)) => return Ok(outcome.kv_cache.bytes),
            other => bail!("the generation broke off: {other:?}"),
        }
    }
}
