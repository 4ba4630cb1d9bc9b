//! The same work on `candle_transformers`' own quantized llama: one sequence, not batched.

use std::{fs::File, path::Path, time::Instant};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor, quantized::gguf_file::Content};
use candle_transformers::models::quantized_llama::ModelWeights;
use keepwell_models::LoadOptions;

use crate::{
    engine::{Arguments, tokens},
    report::{Case, Row, Sample, reset_peak_rss},
};

pub fn run(arguments: &Arguments, bandwidth: f64) -> Result<Vec<Row>> {
    let path = keepwell_models::fetch(&arguments.model, &LoadOptions::default())?;
    let mut model = open(&path)?;
    let weights = std::fs::metadata(&path)?.len() as f64;
    let tests = [("prefill", arguments.prompt), ("decode", arguments.generated)];
    let mut rows = Vec::new();
    for &depth in &arguments.depth {
        for (test, tokens) in tests.into_iter().filter(|(_, tokens)| *tokens > 0) {
            let case = Case {
                test,
                tokens,
                depth,
                batch: 1,
                kv_budget: 1.0,
                model: arguments.model.clone(),
                backend: "candle".into(),
            };
            reset_peak_rss();
            let samples = (0..=arguments.repetitions)
                .map(|_| sample(&mut model, &case, weights))
                .collect::<Result<Vec<_>>>()?;
            rows.push(Row::new(case, &samples[1..], bandwidth));
            rows.iter().last().inspect(|row| row.print());
        }
    }
    Ok(rows)
}

fn open(path: &Path) -> Result<ModelWeights> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let content = Content::read(&mut file)?;
    Ok(ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?)
}

/// Its bytes are those of the weights alone.
fn sample(model: &mut ModelWeights, case: &Case, weights: f64) -> Result<Sample> {
    let Case { test, tokens: counted, depth, .. } = *case;
    let before = if test == "prefill" { depth } else { depth.max(1) };
    let prompt = tokens(before + counted, 0);
    // A step at position 0 clears what the last sample left.
    if before > 0 {
        step(model, &prompt[..before], 0)?;
    }
    let (steps, len) = if test == "prefill" { (1, counted) } else { (counted, 1) };
    let start = Instant::now();
    for i in 0..steps {
        step(model, &prompt[before + i..][..len], before + i)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(Sample { tokens: counted as f64, seconds, bytes: steps as f64 * weights })
}

fn step(model: &mut ModelWeights, tokens: &[u32], position: usize) -> Result<u32> {
    let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
    let logits = model.forward(&input, position)?;
    Ok(logits.squeeze(0)?.argmax(0)?.to_scalar()?)
}
