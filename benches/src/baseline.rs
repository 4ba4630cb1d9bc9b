//! The same work on `candle_transformers`' own quantized llama: one sequence, not batched.

use std::{fs::File, path::Path, time::Instant};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor, quantized::gguf_file::Content};
use candle_transformers::models::quantized_llama::ModelWeights;

use crate::report::{Row, Spread, peak_rss};

pub fn run(path: &Path, prompt: usize, generated: usize, repetitions: usize) -> Result<Vec<Row>> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let content = Content::read(&mut file)?;
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    let samples = (0..=repetitions)
        .map(|_| sample(&mut model, prompt, generated))
        .skip(1)
        .collect::<Result<Vec<_>>>()?;
    let row = |test, tokens: usize, counted: usize, seconds: Vec<f64>| Row {
        test,
        tokens,
        batch: 1,
        kv_budget: 1.0,
        backend: "candle".into(),
        tokens_per_s: Spread::new(seconds.into_iter().map(|s| counted as f64 / s).collect()),
        kv_bytes: 0,
        rss_bytes: peak_rss(),
    };
    let (prefill, decode) = samples.into_iter().unzip();
    Ok(vec![
        row("prefill", prompt, prompt, prefill),
        row("decode", generated, generated - 1, decode),
    ])
}

/// Seconds of prefill and of decode.
fn sample(model: &mut ModelWeights, prompt: usize, generated: usize) -> Result<(f64, f64)> {
    let tokens: Vec<u32> = (0..prompt).map(|i| ((i * 31) % 30_000 + 100) as u32).collect();
    let start = Instant::now();
    let mut next = step(model, &tokens, 0)?;
    let prefill = start.elapsed().as_secs_f64();
    for position in prompt..prompt + generated - 1 {
        next = step(model, &[next], position)?;
    }
    Ok((prefill, start.elapsed().as_secs_f64() - prefill))
}

fn step(model: &mut ModelWeights, tokens: &[u32], position: usize) -> Result<u32> {
    let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
    let logits = model.forward(&input, position)?;
    Ok(logits.squeeze(0)?.argmax(0)?.to_scalar()?)
}
