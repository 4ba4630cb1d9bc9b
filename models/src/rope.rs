//! RoPE frequencies and their scaled variants, from `rope_parameters` (transformers 5) or
//! `rope_theta` and `rope_scaling` (before).

use std::f64::consts::TAU;

use anyhow::{Context, Result, bail, ensure};
use keepwell_kernels::Rope;
use serde_json::Value;

use crate::config::float_or;

const DEFAULT_THETA: f64 = 10_000.0;

/// The table of a model with the given head size; `context_len` is `max_position_embeddings`.
///
/// # Errors
/// An unknown scaling, or parameters that cannot be.
pub fn from_json(settings: &Value, head_dim: usize, context_len: usize) -> Result<Rope> {
    let parameters = [&settings["rope_parameters"], &settings["rope_scaling"]]
        .into_iter()
        .find(|v| v.is_object())
        .unwrap_or(&Value::Null);
    for place in [settings, parameters] {
        let share = float_or(place, "partial_rotary_factor", 1.0)?;
        ensure!(share == 1.0, "a partial rotary embedding ({share}) is not supported");
    }
    let theta =
        float_or(parameters, "rope_theta", float_or(settings, "rope_theta", DEFAULT_THETA)?)?;
    ensure!(theta > 1.0, "`rope_theta` is {theta}; it must be greater than 1");

    let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
    let scaled = Scaled { parameters, theta, head_dim, context_len, plain };
    let kind = ["rope_type", "type"].iter().find_map(|key| parameters[key].as_str());
    let (frequencies, attention_factor) = match kind.unwrap_or("default") {
        "default" => (scaled.plain, 1.0),
        "linear" => (scaled.linear()?, 1.0),
        "llama3" => (scaled.llama3()?, 1.0),
        "yarn" => scaled.yarn()?,
        other => bail!(
            "RoPE scaling `{other}` is not supported; known are default, linear, llama3 and yarn"
        ),
    };
    let frequencies: Vec<f32> = frequencies.into_iter().map(|f| f as f32).collect();
    ensure!(
        frequencies.iter().all(|f| f.is_finite()) && attention_factor.is_finite(),
        "the RoPE parameters {parameters} lead to frequencies that are no numbers"
    );
    Ok(Rope { frequencies, attention_factor: attention_factor as f32 })
}

/// Divides each frequency by a factor of its own: `rope_freqs.weight` of GGUF files.
pub fn divide(rope: &mut Rope, factors: &[f32]) {
    for (frequency, factor) in rope.frequencies.iter_mut().zip(factors) {
        *frequency /= factor;
    }
}

struct Scaled<'a> {
    parameters: &'a Value,
    theta: f64,
    head_dim: usize,
    context_len: usize,
    /// theta^(-2i/D)
    plain: Vec<f64>,
}

impl Scaled<'_> {
    fn required(&self, key: &str) -> Result<f64> {
        let value = self.parameters[key].as_f64();
        let value = value.with_context(|| format!("the RoPE parameters lack `{key}`"))?;
        ensure!(value > 0.0, "the RoPE parameter `{key}` is {value}; it must be positive");
        Ok(value)
    }

    fn original_context_len(&self) -> Result<f64> {
        match &self.parameters["original_max_position_embeddings"] {
            Value::Null => Ok(self.context_len as f64),
            _ => self.required("original_max_position_embeddings"),
        }
    }

    /// Position interpolation (arXiv 2306.15595).
    fn linear(&self) -> Result<Vec<f64>> {
        let factor = self.required("factor")?;
        Ok(self.plain.iter().map(|f| f / factor).collect())
    }

    /// Long waves are stretched by `factor`, short ones kept, those between blended (Llama 3.1).
    fn llama3(&self) -> Result<Vec<f64>> {
        let factor = self.required("factor")?;
        let low = self.required("low_freq_factor")?;
        let high = self.required("high_freq_factor")?;
        let original = self.original_context_len()?;
        ensure!(high > low, "`high_freq_factor` must exceed `low_freq_factor`");
        let scale = |f: f64| {
            let turns = original * f / TAU;
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            f * (kept + (1.0 - kept) / factor)
        };
        Ok(self.plain.iter().map(|&f| scale(f)).collect())
    }

    /// YaRN (arXiv 2309.00071): blends by the number of turns within the original context, and
    /// scales cos and sin. Returns (frequencies, attention factor).
    fn yarn(&self) -> Result<(Vec<f64>, f64)> {
        let original = self.original_context_len()?;
        let factor = match self.parameters["factor"] {
            Value::Null => self.context_len as f64 / original,
            _ => self.required("factor")?,
        };
        let channel = |turns: f64| {
            self.head_dim as f64 * (original / (turns * TAU)).ln() / (2.0 * self.theta.ln())
        };
        let mut first = channel(float_or(self.parameters, "beta_fast", 32.0)?);
        let mut last = channel(float_or(self.parameters, "beta_slow", 1.0)?);
        if self.parameters["truncate"].as_bool().unwrap_or(true) {
            (first, last) = (first.floor(), last.ceil());
        }
        let first = first.max(0.0);
        let last = last.min(self.head_dim as f64 - 1.0);
        let width = if first == last { 0.001 } else { last - first };
        let scale = |(i, &f): (usize, &f64)| {
            let stretched = ((i as f64 - first) / width).clamp(0.0, 1.0);
            f * (1.0 - stretched + stretched / factor)
        };
        Ok((
            self.plain.iter().enumerate().map(scale).collect(),
            self.yarn_attention_factor(factor)?,
        ))
    }

    fn yarn_attention_factor(&self, factor: f64) -> Result<f64> {
        if !self.parameters["attention_factor"].is_null() {
            return self.required("attention_factor");
        }
        let mscale =
            |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
        let weight = float_or(self.parameters, "mscale", 0.0)?;
        let weight_all = float_or(self.parameters, "mscale_all_dim", 0.0)?;
        Ok(match weight != 0.0 && weight_all != 0.0 {
            true => mscale(weight) / mscale(weight_all),
            false => mscale(1.0),
        })
    }
}
