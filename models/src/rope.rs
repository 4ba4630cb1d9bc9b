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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn close(got: &Rope, expected: &[f64]) {
        assert_eq!(got.frequencies.len(), expected.len());
        for (got, expected) in got.frequencies.iter().zip(expected) {
            assert!((f64::from(*got) - expected).abs() < 1e-6 * expected, "{got} {expected}");
        }
    }

    #[test]
    fn both_spellings_of_theta_and_scaling_are_read() {
        let plain = from_json(&json!({"rope_theta": 10000.0}), 4, 64).unwrap();
        close(&plain, &[1.0, 0.01]);
        let new =
            json!({"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 100}});
        let old = json!({"rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 100});
        close(&from_json(&new, 4, 64).unwrap(), &[0.5, 0.05]);
        assert_eq!(from_json(&new, 4, 64).unwrap(), from_json(&old, 4, 64).unwrap());
    }

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let settings = json!({"rope_theta": 500000.0, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}});
        let got = from_json(&settings, 128, 131_072).unwrap();
        // By hand: channel 0 turns 1304 times in 8192 tokens, channel 63 not once; channel 30 makes
        // 8192 * 500000^(-60/128) / 2 pi = 2.780 turns, so (2.780 - 1) / 3 of it is kept.
        let plain = |i: f64| 500_000f64.powf(-2.0 * i / 128.0);
        let turns = 8192.0 * plain(30.0) / TAU;
        let kept = (turns - 1.0) / 3.0;
        assert!((kept - 0.593).abs() < 0.01);
        let blended = (1.0 - kept) * plain(30.0) / 8.0 + kept * plain(30.0);
        for (channel, expected) in [(0, 1.0), (63, plain(63.0) / 8.0), (30, blended)] {
            let off = f64::from(got.frequencies[channel]) / expected - 1.0;
            assert!(off.abs() < 1e-6, "channel {channel}");
        }
    }

    #[test]
    fn yarn_blends_between_its_two_channels_and_warms_attention() {
        let settings = json!({"rope_theta": 10000.0, "rope_parameters": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}});
        let got = from_json(&settings, 64, 8192).unwrap();
        // 32 turns at channel 64 ln(2048 / 64 pi) / (2 ln 10000) = 8.06 -> 8; one turn at
        // 64 ln(2048 / 2 pi) / (2 ln 10000) = 20.1 -> 21.
        let plain = |i: f64| 10_000f64.powf(-2.0 * i / 64.0);
        let stretched = 2.0 / 13.0;
        let tenth = plain(10.0) * (1.0 - stretched + stretched / 4.0);
        for (channel, expected) in [(8, plain(8.0)), (10, tenth), (21, plain(21.0) / 4.0)] {
            let off = f64::from(got.frequencies[channel]) / expected - 1.0;
            assert!(off.abs() < 1e-6, "channel {channel}");
        }
        assert!((got.attention_factor - (0.1 * 4f32.ln() + 1.0)).abs() < 1e-6);
    }

    #[test]
    fn divisors_of_a_gguf_file_divide() {
        let mut rope = from_json(&json!({"rope_theta": 10000.0}), 4, 64).unwrap();
        divide(&mut rope, &[1.0, 8.0]);
        close(&rope, &[1.0, 0.01 / 8.0]);
    }

    #[test]
    fn an_unknown_scaling_is_refused_with_the_known_ones() {
        let settings = json!({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}});
        let error = from_json(&settings, 64, 64).unwrap_err().to_string();
        assert!(error.contains("longrope") && error.contains("linear, llama3 and yarn"));
    }
}
